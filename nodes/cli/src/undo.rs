//! `callboard kernel log`, `checkpoint` and `rewind`: what a kernel can go back to, and going back.

use callboard_protocol::{
    MessageId,
    history::{CellShown, KeepState, KernelHistory, Rewind, RewindPlan, StepOutcome, StepShown},
};

use crate::{
    context::{Context, confirm},
    exit::{Exit, Outcome},
    output::{say, table},
};

/// Names listed in a plan; `--output json` has all.
const NAMES_SHOWN: usize = 20;
/// Cells listed in a plan.
const CELLS_SHOWN: usize = 10;

/// `kernel log`.
///
/// # Errors
/// A [`crate::exit::Failure`] if there is no such kernel or it does not answer.
pub async fn log(context: &Context, kernel: &str) -> Outcome {
    let (client, spec) = context.find(kernel).await?;
    let history = client.kernel(spec.kernel).history().await?;
    context.printer.data(&history, describe)?;
    Ok(Exit::Ok)
}

fn describe(history: &KernelHistory) -> String {
    let mut text = table(
        &["cell", "in", "outcome", "changed", "state", "kept as", "code"],
        history.steps.iter().map(row),
    );
    let listed =
        |name: &&str| history.steps.iter().any(|step| step.checkpoints.iter().any(|it| it == name));
    for kept in &history.checkpoints {
        if !listed(&kept.name.as_str()) {
            text.push_str(&format!("\n{} keeps the state after cell {}", kept.name, kept.cell));
        }
    }
    if history.steps.is_empty() {
        text.push_str("\nno cell has run yet");
    }
    text
}

fn row(step: &StepShown) -> Vec<String> {
    let CellShown { cell, number, first_line } = &step.cell;
    let (cell, outcome) = match &step.outcome {
        StepOutcome::Completed if step.is_undone => (cell.to_string(), "rewound".to_owned()),
        StepOutcome::Completed => (cell.to_string(), "completed".to_owned()),
        StepOutcome::Interrupted => (cell.to_string(), "interrupted".to_owned()),
        StepOutcome::Rewound { checkpoint: Some(name) } => {
            ("-".to_owned(), format!("rewind to {name}"))
        }
        StepOutcome::Restarted => ("-".to_owned(), "restart".to_owned()),
        StepOutcome::Rewound { checkpoint: None } => ("-".to_owned(), format!("rewind to {cell}")),
    };
    vec![
        cell,
        number.map_or("-".to_owned(), |number| format!("In[{number}]")),
        outcome,
        step.changed_bytes.to_string(),
        step.state_bytes.to_string(),
        step.checkpoints.join(" "),
        first_line.clone(),
    ]
}

/// `kernel checkpoint`.
///
/// # Errors
/// As [`log`]; the kernel's refusal.
pub async fn checkpoint(context: &Context, kernel: &str, name: String, drop: bool) -> Outcome {
    let (client, spec) = context.find(kernel).await?;
    let wish = KeepState { name, drop };
    let history = client.kernel(spec.kernel).keep_state(&wish).await?;
    let kept = history.checkpoints.iter().find(|kept| kept.name == wish.name);
    match kept {
        Some(kept) => say(&format!(
            "{} keeps the state after cell {}; go back with `callboard kernel rewind {kernel} {}`",
            kept.name, kept.cell, kept.name
        )),
        None => say(&format!("{} keeps nothing any more", wish.name)),
    }
    context.printer.data(&history.checkpoints, |kept| {
        let row = |it: &callboard_protocol::history::NamedState| {
            vec![it.name.clone(), it.cell.to_string(), it.state_bytes.to_string()]
        };
        table(&["name", "cell", "state"], kept.iter().map(row))
    })?;
    Ok(Exit::Ok)
}

/// `kernel rewind`.
///
/// # Errors
/// As [`log`]; the kernel's refusal; the user's.
pub async fn rewind(context: &Context, kernel: &str, to: String, yes: bool) -> Outcome {
    let (client, spec) = context.find(kernel).await?;
    let client = client.kernel(spec.kernel);
    let id = MessageId::generate().to_string();
    let asked = Rewind { id, to, position: None, plan_only: true };
    let plan = client.rewind(&asked).await?;
    confirm(&explain(&plan), yes)?;
    // What is done is what was shown: the kernel refuses if it has moved on.
    let wish = Rewind { position: Some(plan.position), plan_only: false, ..asked };
    client.rewind(&wish).await?;
    context.printer.data(&plan, |plan| {
        format!(
            "the state is the one after {}; the next cell is In[{}]",
            target(plan),
            plan.execution_count
        )
    })?;
    Ok(Exit::Ok)
}

fn target(plan: &RewindPlan) -> String {
    match (&plan.checkpoint, plan.cell.0) {
        (Some(name), _) => format!("cell {} ({name})", plan.cell),
        (None, 0) => "the start".to_owned(),
        (None, _) => format!("cell {}", plan.cell),
    }
}

/// What a rewind does, in lines.
fn explain(plan: &RewindPlan) -> String {
    let mut lines = vec![format!("This makes the state after {} the present one.", target(plan))];
    for (what, cells) in [("undoes", &plan.undone), ("does again what was undone:", &plan.redone)] {
        for cell in cells.iter().take(CELLS_SHOWN) {
            lines.push(format!("  {what} cell {}: {}", cell.cell, cell.first_line));
        }
        if cells.len() > CELLS_SHOWN {
            lines.push(format!("  {what} {} more cells", cells.len() - CELLS_SHOWN));
        }
    }
    let names =
        [("changes", &plan.changed), ("removes", &plan.removed), ("brings back", &plan.restored)];
    for (what, names) in names.into_iter().filter(|(_, names)| !names.is_empty()) {
        let more = match names.len().saturating_sub(NAMES_SHOWN) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let shown: Vec<&str> = names.iter().take(NAMES_SHOWN).map(String::as_str).collect();
        lines.push(format!("  {what} {}{more}", shown.join(" ")));
    }
    lines.push(
        "No cell is run. Outputs, and what cells did outside the kernel, stay. A rewind can be undone \
         by another."
            .to_owned(),
    );
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use callboard_protocol::Seq;

    use super::*;

    #[test]
    fn a_plan_names_the_cells_and_variables_it_concerns() {
        let cell = CellShown { cell: Seq(3), number: Some(3), first_line: "del y".to_owned() };
        let plan = RewindPlan {
            position: 3,
            cell: Seq(2),
            checkpoint: None,
            execution_count: 3,
            changed: vec!["x".to_owned()],
            removed: Vec::new(),
            restored: (0..30).map(|n| format!("y{n}")).collect(),
            undone: vec![cell],
            redone: Vec::new(),
        };
        let text = explain(&plan);
        for part in [
            "after cell 2",
            "undoes cell 3: del y",
            "changes x",
            "y19 and 10 more",
            "No cell is run",
        ] {
            assert!(text.contains(part), "'{part}' is missing: {text}");
        }
        assert!(!text.contains("removes"), "{text}");
    }
}
