//! A kernel of another language than Python: how its process is started, and what its user is told, as
//! its state is not replicated.

use callboard_protocol::{Fault, FaultCode, Seq, Term};
use callboard_transport::Message;

use super::ReplicaState;
use crate::{
    python::{ForeignKernel, SessionConfig, Taken},
    said,
};

impl ReplicaState {
    /// The kernelspec of the kernel, if it is not Python's.
    fn kernelspec(&self) -> Option<&str> {
        self.args.spec.settings.kernelspec.as_deref()
    }

    /// Takes or starts the process that this kernel runs in.
    pub(super) fn take_process(&self) -> Taken {
        let context = &self.args.context;
        let limits = (self.limits(), context.confinement.cgroups.clone());
        let session = SessionConfig::of(&context.files, &self.args.spec, limits)
            .isolated(context.confinement.isolation.clone().ok());
        match self.kernelspec() {
            None => {
                let taken = context.python.take();
                taken.process.configure(session);
                taken
            }
            Some(name) => {
                let program = context.programs.borrow().get(name).cloned();
                let kernelspec = name.to_owned();
                context.python.start_foreign(ForeignKernel { kernelspec, program, session })
            }
        }
    }

    /// What the first cell that a fresh process runs has to say: what is not there any more.
    pub(super) fn lost_state(&self, term: Term, cell: Seq) -> Option<String> {
        let name = self.kernelspec()?;
        let cause = self.read(|log| {
            let is_next = log.pending().front().is_some_and(|first| first.seq == cell);
            let is_lost = is_next && log.has_outlived_its_process(term);
            is_lost.then(|| log.last_loss().map_or(String::new(), |cause| format!(": {cause}")))
        })?;
        let mut text = format!(
            "[callboard] the process that ran the cells before is gone{cause}. The state of '{name}' \
             sessions is not replicated: this one, on {}, began without their variables. Run the cells \
             again that it needs.",
            self.args.context.node
        );
        if self.args.spec.settings.directory.is_none() {
            text.push_str(" Files stay where they were written.");
        }
        text.push('\n');
        Some(text)
    }

    /// Says what the running cell has to say. Not before its `execute_input`: clients take that for
    /// the first of its outputs.
    pub(super) fn say_notice(&mut self) {
        let Some(cell) = &mut self.cell else { return };
        let Some(text) = cell.notice.take() else { return };
        let message = said::warning(self.args.spec.kernel, &cell.msg_id, &text);
        self.heard(message);
    }

    /// Refuses what needs a state that is kept. Says whether it did.
    pub(super) fn refuse_without_state(&self, message: &Message) -> bool {
        let Some(name) = self.kernelspec() else { return false };
        if matches!(message.subject.last(), "log" | "restart") {
            return false;
        }
        let text = format!(
            "the state of '{name}' sessions is not replicated, so there is none to keep, to go back to \
             or to take elsewhere: run the cells again where it is needed"
        );
        self.refuse(message, Fault::new(FaultCode::BadRequest, text));
        true
    }
}
