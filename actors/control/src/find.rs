//! Finds the kernel that a person means.

use callboard_protocol::{Fault, FaultCode, KernelId, OwnerId, control::KernelSpec};

use crate::desired::DesiredState;

/// Candidates named in a refusal; more would not be read.
const CANDIDATES_SHOWN_MAX: usize = 5;

/// By id, then by name (the owner's own kernels first), then by unambiguous start of an id.
pub(crate) fn find_kernel(
    state: &DesiredState,
    owner: &OwnerId,
    text: &str,
) -> Result<KernelSpec, Fault> {
    if let Ok(id) = text.parse::<KernelId>() {
        return match state.kernels().get(&id) {
            Some(spec) => Ok(spec.clone()),
            None if state.is_stopped(id) => Err(not_found(format!(
                "kernel {id} was stopped: start another with `callboard kernel start`"
            ))),
            None => Err(not_found(format!("there is no kernel {id}: see `callboard kernel list`"))),
        };
    }
    let named: Vec<&KernelSpec> =
        state.kernels().values().filter(|spec| spec.name.as_deref() == Some(text)).collect();
    if let Some(own) = named.iter().find(|spec| spec.owner == *owner) {
        return Ok((*own).clone());
    }
    if !named.is_empty() {
        return only_one(text, "is the name of", &named);
    }
    let start = text.to_ascii_lowercase();
    let is_id_start =
        !start.is_empty() && start.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    let begun: Vec<&KernelSpec> = state
        .kernels()
        .values()
        .filter(|spec| is_id_start && spec.kernel.to_string().starts_with(&start))
        .collect();
    if begun.is_empty() {
        return Err(not_found(no_match(state, text)));
    }
    only_one(text, "begins the ids of", &begun)
}

fn only_one(text: &str, what: &str, found: &[&KernelSpec]) -> Result<KernelSpec, Fault> {
    if let [one] = found {
        return Ok((*one).clone());
    }
    let message = format!(
        "'{text}' {what} {} kernels ({}): give the whole id of the one you mean",
        found.len(),
        list(found)
    );
    Err(Fault::new(FaultCode::BadRequest, message))
}

fn no_match(state: &DesiredState, text: &str) -> String {
    let kernels: Vec<&KernelSpec> = state.kernels().values().collect();
    if kernels.is_empty() {
        return format!(
            "there is no kernel '{text}', and no other one: start one with `callboard kernel start`"
        );
    }
    format!(
        "there is no kernel '{text}'; there are {}: see `callboard kernel list`",
        list(&kernels)
    )
}

fn list(kernels: &[&KernelSpec]) -> String {
    let label = |spec: &&KernelSpec| match &spec.name {
        Some(name) => format!("{name} ({})", spec.kernel),
        None => spec.kernel.to_string(),
    };
    let mut shown: Vec<String> = kernels.iter().take(CANDIDATES_SHOWN_MAX).map(label).collect();
    if kernels.len() > CANDIDATES_SHOWN_MAX {
        shown.push(format!("{} more", kernels.len() - CANDIDATES_SHOWN_MAX));
    }
    shown.join(", ")
}

fn not_found(message: String) -> Fault {
    Fault::new(FaultCode::NotFound, message)
}

#[cfg(test)]
mod tests {
    use callboard_protocol::{DiskId, NodeId};
    use callboard_replicated::Machine as _;
    use uuid::Uuid;

    use super::*;
    use crate::desired::Command;

    fn state(kernels: &[(u128, &str, Option<&str>)]) -> DesiredState {
        let mut state = DesiredState::default();
        for (index, (id, owner, name)) in (1..).zip(kernels) {
            let command = Command::StartKernel {
                kernel: KernelId(Uuid::from_u128(*id)),
                owner: OwnerId::new(*owner).unwrap(),
                name: name.map(str::to_owned),
                replicas: 1,
                origin: None,
                options: Default::default(),
                places: vec![(NodeId::new("node-1").unwrap(), DiskId(Uuid::nil()))],
                settings: Default::default(),
            };
            state.apply(index, command);
        }
        state
    }

    const A: u128 = 0xaaaa_0001 << 96;
    const B: u128 = 0xaaaa_0002 << 96;

    #[test]
    fn a_kernel_is_found_by_id_name_or_unambiguous_start() {
        let state =
            state(&[(A, "ada", Some("plots")), (B, "bob", Some("plots")), (7, "ada", None)]);
        let find = |owner: &str, text: &str| {
            find_kernel(&state, &OwnerId::new(owner).unwrap(), text).map(|it| it.kernel.0.as_u128())
        };
        assert_eq!(find("ada", &KernelId(Uuid::from_u128(A)).to_string()), Ok(A));
        assert_eq!(find("ada", "plots"), Ok(A));
        assert_eq!(find("bob", "plots"), Ok(B));
        assert_eq!(find("eve", "AAAA0002"), Ok(B));
        let several = find("eve", "plots").unwrap_err();
        assert!(several.message.contains("is the name of 2 kernels"), "{several}");
        let several = find("eve", "aaaa").unwrap_err();
        assert_eq!(several.code, FaultCode::BadRequest);
        assert!(several.message.contains("give the whole id"), "{several}");
    }

    #[test]
    fn an_unknown_kernel_is_answered_with_a_next_step() {
        let owner = OwnerId::default();
        let none = find_kernel(&state(&[]), &owner, "x").unwrap_err();
        assert!(none.message.contains("callboard kernel start"), "{none}");
        let mut state = state(&[(A, "ada", Some("plots"))]);
        let fault = find_kernel(&state, &owner, "").unwrap_err();
        assert!(fault.message.contains("plots (aaaa0001-"), "{fault}");
        let kernel = KernelId(Uuid::from_u128(A));
        state.apply(9, Command::StopKernel { kernel });
        let stopped = find_kernel(&state, &owner, &kernel.to_string()).unwrap_err();
        assert!(stopped.message.contains("was stopped"), "{stopped}");
    }
}
