//! Cells whose outputs a front-end wants to see again, and those that follow: a page that was
//! reloaded asks for them by the ids of their requests.

use bytes::Bytes;
use callboard_protocol::{Fault, jupyter::Channel, kernel::CellFate};
use futures::{
    FutureExt as _,
    future::{BoxFuture, pending, select_all},
};
use serde_json::{Value, json};

use super::{Channels, Delivery, Done, is_status};
use crate::{own::OUTPUTS_REQUEST, said::ERROR_NAME};

/// Cells whose outputs one front-end may have said again at a time.
const FOLLOWED_MAX: usize = 100;

/// A front-end's wish to see a cell's outputs again, and those that follow.
#[derive(Debug, Clone)]
pub(super) struct Follow {
    /// The header of the wish: the outputs are said in its name.
    wish: Bytes,
    /// The cell's request.
    msg_id: String,
}

/// Cells whose outputs are said again, each on channels of its own.
#[derive(Default)]
pub(super) struct Followed(Vec<(Follow, Box<Channels>)>);

impl Followed {
    /// The next message of any of them, and of which.
    pub(super) fn next(&mut self) -> BoxFuture<'_, (usize, Result<Delivery, Fault>)> {
        if self.0.is_empty() {
            return pending().boxed();
        }
        let nexts = self.0.iter_mut().map(|(_, cell)| cell.next().boxed());
        select_all(nexts).map(|(delivery, index, _)| (index, delivery)).boxed()
    }
}

impl Channels {
    /// Asks whether there is such a cell.
    pub(super) fn wish_to_follow(&mut self, wish: Bytes, msg_id: String) {
        let (kernel, follow) = (self.kernel.clone(), Follow { wish, msg_id });
        self.in_flight.push(
            async move {
                let fate = kernel.fate(&follow.msg_id).await;
                Done::Followed(follow, fate)
            }
            .boxed(),
        );
    }

    /// Begins to say a cell's outputs again, if there is such a cell.
    pub(super) fn follow(&mut self, follow: Follow, fate: Result<CellFate, Fault>) {
        match fate {
            Ok(CellFate { accepted: Some(_) }) if self.followed.0.len() >= FOLLOWED_MAX => {
                let why = "too many cells are followed: wait until some have ended";
                self.say_failed(&follow.wish, Channel::Shell, OUTPUTS_REQUEST, why);
            }
            Ok(CellFate { accepted: Some(_) }) => {
                let busy = self.said(&follow.wish).status("busy");
                self.deliver(busy);
                let cell = Box::new(Self::of_cell(self.kernel.clone(), &follow.msg_id));
                self.followed.0.push((follow, cell));
            }
            Ok(CellFate { accepted: None }) => self.followed_to_the_end(&follow, "unknown", None),
            Err(fault) => {
                self.say_failed(&follow.wish, Channel::Shell, OUTPUTS_REQUEST, &fault.message);
            }
        }
    }

    /// Passes on what the channels of a cell that is followed brought.
    pub(super) fn on_followed(&mut self, index: usize, delivery: Result<Delivery, Fault>) {
        let Some((follow, _)) = self.followed.0.get(index) else { return };
        let mut message = match delivery {
            Ok(delivery) => delivery.message,
            Err(fault) => {
                let (follow, _) = self.followed.0.swap_remove(index);
                self.say_failed(&follow.wish, Channel::Shell, OUTPUTS_REQUEST, &fault.message);
                return;
            }
        };
        let is_of_cell = message.parent_msg_id().as_ref() == Some(&follow.msg_id);
        if !is_of_cell || is_status(&message, "idle") {
            return;
        }
        if message.channel == Channel::Shell {
            let (follow, _) = self.followed.0.swap_remove(index);
            let reply: Value = message.parse_content().unwrap_or_default();
            let cell = if reply["ename"] == ERROR_NAME { "interrupted" } else { "ended" };
            self.followed_to_the_end(&follow, cell, reply["execution_count"].as_u64());
            return;
        }
        message.parent_header = follow.wish.clone();
        self.deliver(message);
    }

    fn followed_to_the_end(&mut self, follow: &Follow, cell: &str, execution_count: Option<u64>) {
        let said = self.said(&follow.wish);
        let content = json!({ "status": "ok", "cell": cell, "execution_count": execution_count });
        let messages = [said.reply(Channel::Shell, OUTPUTS_REQUEST, &content), said.status("idle")];
        messages.into_iter().for_each(|message| self.deliver(message));
    }
}
