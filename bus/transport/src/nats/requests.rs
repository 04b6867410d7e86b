//! Answers to requests: one subscription for all of them, and who waits for which.
//!
//! The client library has the like, but keeps an entry for every request that is never answered; a
//! node asks peers that are gone a dozen times a second for months.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use async_nats::{Client, Message, SubscribeError, Subscriber};
use futures::StreamExt;
use tokio::{sync::oneshot, task::JoinSet};

/// Who waits, by the last token of the subject that the answer comes to.
#[derive(Debug, Default)]
struct Waiting(Mutex<HashMap<u64, oneshot::Sender<Message>>>);

impl Waiting {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<Message>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands an answer to whoever waits for it; a late one is dropped.
    fn arrived(&self, answer: Message) {
        let id = answer.subject.rsplit('.').next().and_then(|id| id.parse().ok());
        if let Some(waiting) = id.and_then(|id: u64| self.lock().remove(&id)) {
            let _ = waiting.send(answer);
        }
    }
}

/// The requests of one connection.
#[derive(Debug)]
pub(super) struct Requests {
    inbox: String,
    next: AtomicU64,
    waiting: Arc<Waiting>,
    /// Its end is that of the subscription.
    _reader: JoinSet<()>,
}

impl Requests {
    /// Subscribes to the answers.
    pub(super) async fn subscribe(client: &Client) -> Result<Self, SubscribeError> {
        let inbox = client.new_inbox();
        let answers = client.subscribe(format!("{inbox}.*")).await?;
        let waiting = Arc::<Waiting>::default();
        let mut reader = JoinSet::new();
        reader.spawn(read(answers, waiting.clone()));
        Ok(Self { inbox, next: AtomicU64::new(0), waiting, _reader: reader })
    }

    /// Waits for one answer from now on.
    pub(super) fn expect(&self) -> Expected {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.waiting.lock().insert(id, sender);
        let reply_to = format!("{}.{id}", self.inbox);
        Expected { id, reply_to, waiting: self.waiting.clone(), answer }
    }
}

async fn read(mut answers: Subscriber, waiting: Arc<Waiting>) {
    while let Some(answer) = answers.next().await {
        waiting.arrived(answer);
    }
}

/// One answer that is waited for. Dropped, it is so no longer.
#[derive(Debug)]
pub(super) struct Expected {
    id: u64,
    reply_to: String,
    waiting: Arc<Waiting>,
    answer: oneshot::Receiver<Message>,
}

impl Expected {
    /// Where the answer is to be sent.
    pub(super) fn reply_to(&self) -> &str {
        &self.reply_to
    }

    /// The answer, or `None` if the connection ends for good.
    pub(super) async fn answer(&mut self) -> Option<Message> {
        (&mut self.answer).await.ok()
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.waiting.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests() -> Requests {
        let (inbox, next) = ("_INBOX.test".to_owned(), AtomicU64::new(0));
        Requests { inbox, next, waiting: Arc::default(), _reader: JoinSet::new() }
    }

    fn answer(subject: &str, text: &'static str) -> Message {
        Message {
            subject: subject.into(),
            reply: None,
            payload: text.into(),
            headers: None,
            status: None,
            description: None,
            length: text.len(),
        }
    }

    #[tokio::test]
    async fn an_answer_reaches_the_request_that_it_is_for() {
        let requests = requests();
        let (mut first, mut second) = (requests.expect(), requests.expect());
        requests.waiting.arrived(answer(second.reply_to(), "second"));
        requests.waiting.arrived(answer(first.reply_to(), "first"));
        requests.waiting.arrived(answer("_INBOX.test.other", "nobody's"));
        assert_eq!(first.answer().await.unwrap().payload, "first");
        assert_eq!(second.answer().await.unwrap().payload, "second");
    }

    #[test]
    fn a_request_that_is_never_answered_leaves_nothing() {
        let requests = requests();
        let reply_to = requests.expect().reply_to().to_owned();
        assert!(requests.waiting.lock().is_empty());
        requests.waiting.arrived(answer(&reply_to, "late"));
        assert!(requests.waiting.lock().is_empty());
    }
}
