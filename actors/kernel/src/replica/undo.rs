//! Looking at the kernel's history, keeping states by name, going back. The leader answers.

use std::time::Duration;

use callboard_policy::terms::{Applied, Entry, KernelLog, RewindTo, StateGroup, UndoRefusal};
use callboard_protocol::{
    Answer, Fault, FaultCode, Seq,
    control::Origin,
    history::{
        GetManifest, KeepState, Manifest, Restart, Rewind, RewindPlan, SeedPage, SeedProgress,
    },
};
use callboard_replicated::{Group, ProposeError};
use callboard_transport::{Message, typed};

use super::ReplicaState;
use crate::KernelMachine;

/// How long an entry may take to be committed: less than clients wait, so that they are told.
const PROPOSE_WITHIN: Duration = Duration::from_secs(4);
/// Bytes of groups in one page of a manifest. In base64 it stays under the broker's usual limit of
/// 1 MiB.
const PAGE_BYTES_MAX: usize = 512 << 10;

impl ReplicaState {
    /// Answers one of the history's verbs, if this replica leads.
    pub(super) fn undo_verb(&mut self, message: &Message) {
        if !self.group.is_leader() || self.refuse_without_state(message) {
            return;
        }
        match message.subject.last() {
            "log" => self.answer_with(message, Ok(self.read(KernelLog::history))),
            "manifest" => {
                let page = typed::decode_or_default(message)
                    .and_then(|asked| self.read(|log| page(log, &asked)));
                self.answer_with(message, page);
            }
            "seed" => match typed::decode(message) {
                Ok(page) => self.take_seed(message, page),
                Err(fault) => self.refuse(message, fault),
            },
            "checkpoint" => match typed::decode(message) {
                Ok(wish) => self.keep_state(message, wish),
                Err(fault) => self.refuse(message, fault),
            },
            "restart" => match typed::decode(message) {
                Ok(wish) => self.restart(message, wish),
                Err(fault) => self.refuse(message, fault),
            },
            _ => match typed::decode(message) {
                Ok(wish) => self.rewind(message, wish),
                Err(fault) => self.refuse(message, fault),
            },
        }
    }

    /// Puts a page of an uploaded state in the log. Its chunks are on a majority already.
    fn take_seed(&mut self, message: &Message, SeedPage { skip, groups, end }: SeedPage) {
        let is_awaited = self.args.spec.origin == Some(Origin::Upload);
        let groups = match rmp_serde::from_slice(&groups) {
            Ok(groups) if is_awaited => groups,
            Ok(_) => {
                let why = "this kernel does not wait for a state: start one with \
                           `callboard kernel restore`";
                return self.refuse(message, Fault::new(FaultCode::Conflict, why));
            }
            Err(error) => {
                let why = format!("the groups of the page cannot be read: {error}");
                return self.refuse(message, Fault::new(FaultCode::BadRequest, why));
            }
        };
        self.propose_for(message, Entry::Seed { skip, groups, end }, |_, group| {
            Ok(group.read(|machine| SeedProgress {
                held: machine.log().groups_held(),
                has_begun: machine.log().begun_from().is_some(),
            }))
        });
    }

    fn keep_state(&mut self, message: &Message, KeepState { name, drop }: KeepState) {
        let at = self.read(KernelLog::position);
        let entry =
            if drop { Entry::DropCheckpoint { name } } else { Entry::Checkpoint { name, at } };
        self.propose_for(message, entry, |applied, group| match applied {
            Applied::Kept => Ok(group.read(|machine| machine.log().history())),
            other => Err(declined(other)),
        });
    }

    fn rewind(&mut self, message: &Message, wish: Rewind) {
        if let Some(cell) = self.read(|log| log.rewound_by(&wish.id)) {
            // Done before: the answer was lost on its way.
            return self.answer_with(message, Ok(self.read(|log| done_before(log, cell))));
        }
        let planned = self.read(|log| {
            let to = log.find_state(&wish.to)?;
            let plan = log.plan_rewind(&to)?;
            match wish.position {
                Some(position) if position != plan.position => Err(UndoRefusal::Moved),
                _ => Ok((to, plan)),
            }
        });
        let (to, plan) = match planned {
            Ok(planned) => planned,
            Err(refusal) => return self.refuse(message, refusal.into()),
        };
        if wish.plan_only {
            return self.answer_with(message, Ok(plan));
        }
        tracing::info!(kernel = %self.args.spec.kernel, cell = %plan.cell, "rewinding");
        let entry = Entry::Rewind { id: wish.id, at: plan.position, to };
        self.propose_for(message, entry, move |applied, _| match applied {
            Applied::Rewound { .. } => Ok(plan),
            other => Err(declined(other)),
        });
    }

    /// Ends what runs and waits, and has the session begin anew.
    fn restart(&mut self, message: &Message, Restart { id }: Restart) {
        if self.read(|log| log.rewound_by(&id).is_some()) {
            return self.answer_with(message, Ok(()));
        }
        tracing::info!(kernel = %self.args.spec.kernel, "restarting");
        self.propose_for(message, Entry::Restart { id }, |applied, _| match applied {
            // Ignored: it was done under this id meanwhile.
            Applied::Restarted { .. } | Applied::Ignored => Ok(()),
            other => Err(declined(other)),
        });
    }

    /// Puts an entry in the log and answers with what came of it.
    fn propose_for<T: serde::Serialize + Send + 'static>(
        &mut self,
        message: &Message,
        entry: Entry,
        answer: impl FnOnce(Applied, &Group<KernelMachine>) -> Result<T, Fault> + Send + 'static,
    ) {
        // Entries that wait for company come first.
        self.flush();
        let (group, publisher) = (self.group.clone(), self.publisher.clone());
        let reply_to = message.reply_to.clone();
        let proposal = group.propose_within(entry, PROPOSE_WITHIN);
        tokio::spawn(async move {
            let result = match proposal.await {
                Ok(applied) => answer(applied, &group),
                Err(error) => Err(not_proposed(&error)),
            };
            if let Some(reply_to) = reply_to {
                publisher.answer(&reply_to, &Answer::from(result));
            }
        });
    }
}

fn done_before(log: &KernelLog, cell: Seq) -> RewindPlan {
    RewindPlan {
        position: log.position(),
        cell,
        checkpoint: None,
        execution_count: log.execution_count(),
        changed: Vec::new(),
        removed: Vec::new(),
        restored: Vec::new(),
        undone: Vec::new(),
        redone: Vec::new(),
    }
}

fn declined(applied: Applied) -> Fault {
    match applied {
        Applied::Declined(refusal) => refusal.into(),
        other => Fault::maybe_executed(
            FaultCode::Internal,
            format!("a defect: the kernel's log answered {other:?}; please report it"),
        ),
    }
}

fn not_proposed(error: &ProposeError) -> Fault {
    match error {
        ProposeError::TooLarge { .. } => Fault::new(FaultCode::TooLarge, error.to_string()),
        ProposeError::NotExecuted { .. } => Fault::new(
            FaultCode::Unavailable,
            format!("most of the kernel's replicas do not answer ({error}): try again in a moment"),
        ),
        ProposeError::Unknown { .. } => Fault::maybe_executed(
            FaultCode::Unavailable,
            format!(
                "the kernel lost its majority meanwhile ({error}): see `callboard kernel log`, \
                 then try again"
            ),
        ),
    }
}

/// One page of a state's manifest.
fn page(log: &KernelLog, asked: &GetManifest) -> Result<Manifest, Fault> {
    let to = match &asked.at {
        Some(text) => log.find_state(text)?,
        None => RewindTo::Position(log.position()),
    };
    let moment = log.moment_at(&to)?;
    let skip = usize::try_from(asked.skip).unwrap_or(usize::MAX);
    let mut groups: Vec<(&String, &StateGroup)> = Vec::new();
    let (mut bytes, mut more) = (0, false);
    for entry in moment.manifest.iter().skip(skip) {
        bytes += encode(&entry)?.len();
        if bytes > PAGE_BYTES_MAX && !groups.is_empty() {
            more = true;
            break;
        }
        groups.push(entry);
    }
    let at = match &to {
        RewindTo::Position(position) => format!("@{position}"),
        RewindTo::Checkpoint(name) => name.clone(),
    };
    Ok(Manifest {
        at,
        cell: log.cell_of(&to),
        groups: encode(&groups)?.into(),
        count: groups.len() as u64,
        more,
        refused: moment.refused.clone(),
        execution_count: moment.execution_count,
    })
}

fn encode<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, Fault> {
    rmp_serde::to_vec(value)
        .map_err(|error| Fault::new(FaultCode::Internal, format!("cannot write a page: {error}")))
}
