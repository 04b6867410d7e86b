//! A scripted kernel on an in-memory bus: it runs a msg_id once, keeps its outputs, and misbehaves
//! as told on the way to the client.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use callboard_client::{Client, ExecuteEvent, Execution};
use callboard_protocol::{
    ActorKind, ClusterId, Envelope, Fault, KernelId, Seq, Subject, SubjectPattern, Term,
    jupyter::{Channel, JupyterMessage},
    kernel::{
        Accepted, AskFate, CellEnd, CellFate, CellOutcome, CellState, GetOutputs, Output,
        OutputCursor, OutputPlace, Outputs, Seen as SessionSeen, SeenAnswer, SessionPlace,
    },
};
use callboard_transport::{
    Bus, MemoryNet, Message,
    typed::{announce, answer, decode},
};
use serde_json::{Value, json};

/// How the kernel misbehaves, and what it did.
#[derive(Debug, Default)]
pub(crate) struct Script {
    /// Acceptances that are lost before one is sent.
    pub lost_answers: u32,
    /// Numbers of outputs that are kept but not announced.
    pub unannounced: BTreeSet<u64>,
    /// Whether every event is announced twice.
    pub doubled: bool,
    /// Whether the end of a cell is not announced.
    pub silent_end: bool,
    /// Whether a cell never ends.
    pub hangs: bool,
    /// Whether a cell's reply and `idle` are outputs, too, as front-ends expect.
    pub replies: bool,
    /// Why the executor is lost that runs a cell, before its reply.
    pub loss: Option<String>,
    /// Questions how far a session was that stay unanswered.
    pub lost_seen: u32,
    /// How far each session is.
    pub seen: BTreeMap<String, SessionPlace>,
    /// Whether the executor is lost after it announced a cell's end and before the log has it; the
    /// cell's last output is lost with it.
    pub loses_executor: bool,
    /// Outputs up to this number are no longer kept.
    pub expired_to: u64,
    /// What every request is refused with.
    pub refusal: Option<Fault>,
    /// How often each msg_id arrived.
    pub arrived: BTreeMap<String, u32>,
    /// How often a cell was run.
    pub runs: u32,
    /// How often the log was read.
    pub fetches: u32,
    /// The outputs kept.
    pub log: Vec<Output>,
    /// Every cell's place and end.
    pub cells: BTreeMap<String, (Seq, Option<CellEnd>)>,
}

impl Script {
    /// How the log has the cell ended, whose executor said that it completed. The next executor has
    /// an output in the log already.
    fn lose_executor(&mut self, end: &CellEnd) -> CellEnd {
        self.log.pop();
        let place =
            OutputPlace { cursor: OutputCursor { term: Term(2), number: 1 }, cell: Seq(99) };
        self.log.push(Output { place, message: Bytes::new() });
        let outcome = CellOutcome::Interrupted { cause: "lost".to_owned() };
        CellEnd { outcome, last_output: None, ..end.clone() }
    }
}

/// A fake kernel and the network it is on.
pub(crate) struct Fake {
    pub net: MemoryNet,
    pub client: Client,
    pub kernel: KernelId,
    script: Arc<Mutex<Script>>,
}

impl Fake {
    pub(crate) async fn start(script: Script) -> Self {
        let net = MemoryNet::new(7, callboard_transport::FaultPlan::default());
        let cluster = ClusterId::new("test").unwrap();
        let kernel = KernelId::generate();
        let script = Arc::new(Mutex::new(script));
        let bus = net.connect("kernel");
        let pattern = SubjectPattern::Verbs {
            cluster: cluster.clone(),
            kind: ActorKind::Kernel,
            id: kernel.to_string(),
        };
        let mut requests = bus.subscribe(&pattern).await.unwrap();
        let worker = Worker { bus, cluster: cluster.clone(), kernel, script: script.clone() };
        tokio::spawn(async move {
            while let Some(request) = requests.next().await {
                worker.serve(request).await;
            }
        });
        let client = Client::new(net.connect("client"), cluster);
        Self { net, client, kernel, script }
    }

    /// Announces an event of the kernel.
    pub(crate) async fn announce(&self, event: &str, body: &Value) {
        let cluster = self.client.cluster();
        let subject = Subject::event(cluster, ActorKind::Kernel, self.kernel, event);
        let bus = self.client.bus().as_ref();
        announce(bus, &subject, &Envelope::default(), body).await.unwrap();
    }

    pub(crate) fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }
}

struct Worker {
    bus: Arc<dyn Bus>,
    cluster: ClusterId,
    kernel: KernelId,
    script: Arc<Mutex<Script>>,
}

impl Worker {
    async fn serve(&self, request: Message) {
        match request.subject.last() {
            "shell" => self.shell(request).await,
            "outputs" => {
                let asked: GetOutputs = decode(&request).unwrap();
                let outputs = self.read_log(asked.since);
                answer(self.bus.as_ref(), &request, Ok(outputs)).await.unwrap();
            }
            "seen" => {
                let asked: SessionSeen = decode(&request).unwrap();
                if let Some(seen) = self.seen(asked) {
                    answer(self.bus.as_ref(), &request, Ok(seen)).await.unwrap();
                }
            }
            "fate" => {
                let asked: AskFate = decode(&request).unwrap();
                let accepted = self.script.lock().unwrap().cells.get(&asked.msg_id).cloned();
                let accepted = accepted.map(|(seq, end)| Accepted {
                    seq,
                    state: end.map_or(CellState::Pending, CellState::Ended),
                });
                answer(self.bus.as_ref(), &request, Ok(CellFate { accepted })).await.unwrap();
            }
            verb => panic!("unexpected verb {verb}"),
        }
    }

    fn seen(&self, asked: SessionSeen) -> Option<SeenAnswer> {
        let mut script = self.script.lock().unwrap();
        if let Some(place) = asked.place {
            script.seen.insert(asked.session, place);
            return None;
        }
        if script.lost_seen > 0 {
            script.lost_seen -= 1;
            return None;
        }
        let last = script.log.last().map(|output| output.place.cursor);
        Some(SeenAnswer { place: script.seen.get(&asked.session).copied(), last })
    }

    fn read_log(&self, since: OutputCursor) -> Outputs {
        let mut script = self.script.lock().unwrap();
        script.fetches += 1;
        let expired = OutputCursor { term: Term(1), number: script.expired_to };
        let kept = |output: &&Output| output.place.cursor > since.max(expired);
        let all: Vec<Output> = script.log.iter().filter(kept).cloned().collect();
        let more = all.len() > 2;
        Outputs {
            outputs: all.into_iter().take(2).collect(),
            gap: script.expired_to > 0 && since < expired,
            more,
            ended: script.cells.values().filter_map(|(_, end)| end.clone()).collect(),
            part: None,
        }
    }

    async fn shell(&self, request: Message) {
        let message = JupyterMessage::decode(&request.payload).unwrap();
        let msg_id = message.parse_header().unwrap().msg_id;
        let (reply, fresh) = {
            let mut script = self.script.lock().unwrap();
            *script.arrived.entry(msg_id.clone()).or_default() += 1;
            if let Some(fault) = script.refusal.clone() {
                (Some(Err(fault)), false)
            } else {
                let fresh = !script.cells.contains_key(&msg_id);
                let next = Seq(script.cells.len() as u64 + 1);
                let (seq, end) = script.cells.entry(msg_id.clone()).or_insert((next, None)).clone();
                let state = end.map_or(CellState::Pending, CellState::Ended);
                let lost = script.lost_answers > 0;
                script.lost_answers = script.lost_answers.saturating_sub(1);
                ((!lost).then_some(Ok(Accepted { seq, state })), fresh)
            }
        };
        if let Some(reply) = reply {
            // A cut network must not end the kernel.
            let _ = answer(self.bus.as_ref(), &request, reply).await;
        }
        if fresh {
            self.run(&message, &msg_id).await;
        }
    }

    async fn run(&self, request: &JupyterMessage, msg_id: &str) {
        let content: Value = request.parse_content().unwrap();
        let texts: Vec<&str> = content["code"].as_str().unwrap().split(' ').collect();
        let seq = self.begin(msg_id);
        self.emit(request, seq, "status", &json!({"execution_state": "busy"})).await;
        for text in texts {
            self.emit(request, seq, "stream", &json!({"name": "stdout", "text": text})).await;
        }
        if self.script.lock().unwrap().hangs {
            return;
        }
        let (replies, loss) = {
            let script = self.script.lock().unwrap();
            (script.replies, script.loss.clone())
        };
        if replies && loss.is_none() {
            let reply = json!({"status": "ok", "execution_count": seq.0});
            self.emit(request, seq, "execute_reply", &reply).await;
            self.emit(request, seq, "status", &json!({"execution_state": "idle"})).await;
        }
        let outcome =
            loss.map_or(CellOutcome::Completed, |cause| CellOutcome::Interrupted { cause });
        let (end, silent, copies) = {
            let mut script = self.script.lock().unwrap();
            let last_output = script.log.last().map(|output| output.place.cursor);
            let end =
                CellEnd { seq, msg_id: msg_id.to_owned(), term: Term(1), outcome, last_output };
            let logged =
                if script.loses_executor { script.lose_executor(&end) } else { end.clone() };
            script.cells.insert(msg_id.to_owned(), (seq, Some(logged)));
            (end, script.silent_end, 1 + u8::from(script.doubled))
        };
        for _copy in 0..if silent { 0 } else { copies } {
            let subject = Subject::event(&self.cluster, ActorKind::Kernel, self.kernel, "ended");
            let _ = announce(self.bus.as_ref(), &subject, &Envelope::default(), &end).await;
        }
    }

    fn begin(&self, msg_id: &str) -> Seq {
        let mut script = self.script.lock().unwrap();
        script.runs += 1;
        script.cells[msg_id].0
    }

    async fn emit(&self, request: &JupyterMessage, cell: Seq, msg_type: &str, content: &Value) {
        let header = json!({"msg_id": "o", "msg_type": msg_type, "session": "k"}).to_string();
        let message = JupyterMessage {
            channel: if msg_type == "execute_reply" { Channel::Shell } else { Channel::Iopub },
            header: header.into(),
            parent_header: request.header.clone(),
            metadata: Bytes::from_static(b"{}"),
            content: content.to_string().into(),
            buffers: Vec::new(),
        };
        let frame = message.encode();
        let (place, copies) = {
            let mut script = self.script.lock().unwrap();
            let number = script.log.len() as u64 + 1;
            let place = OutputPlace { cursor: OutputCursor { term: Term(1), number }, cell };
            script.log.push(Output { place, message: frame.clone() });
            let copies = 1 + u8::from(script.doubled);
            (place, if script.unannounced.contains(&number) { 0 } else { copies })
        };
        let envelope = Envelope { cursor: Some(place), ..Envelope::default() };
        let subject = Subject::event(&self.cluster, ActorKind::Kernel, self.kernel, "emitted");
        for _copy in 0..copies {
            let _ = self.bus.publish(&subject, &envelope, frame.clone()).await;
        }
    }
}

/// What a cell showed: its texts in order, its notices, its end.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub texts: Vec<String>,
    pub notices: Vec<String>,
    pub end: Option<CellEnd>,
    pub fault: Option<Fault>,
}

impl Seen {
    pub(crate) fn take(&mut self, item: Result<ExecuteEvent, Fault>) {
        match item {
            Ok(ExecuteEvent::Output(message, _)) => {
                let content: Value = message.parse_content().unwrap();
                self.texts.extend(content["text"].as_str().map(str::to_owned));
            }
            Ok(ExecuteEvent::Ended(end)) => self.end = Some(end),
            Ok(ExecuteEvent::Notice(text)) => self.notices.push(text),
            Ok(ExecuteEvent::Accepted(_)) => {}
            Err(fault) => self.fault = Some(fault),
        }
    }
}

/// Follows a cell to its end.
pub(crate) async fn follow(mut execution: Execution) -> Seen {
    let mut seen = Seen::default();
    while let Some(item) = execution.next().await {
        seen.take(item);
    }
    seen
}
