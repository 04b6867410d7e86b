//! A front-end's side of a gateway: a websocket to a kernel, and single requests.

use std::{net::SocketAddrV4, time::Duration};

use bytes::Bytes;
use callboard_protocol::jupyter::{Channel, JupyterMessage};
use futures::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest, http::HeaderValue},
};

/// How long the gateway may take to answer.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long a cell may take before the gateway counts as stuck.
const CELL_WITHIN: Duration = Duration::from_secs(30);
/// The framing that the bus uses too; gateways offer it, and it is the faster of their two.
const SUBPROTOCOL: &str = "v1.kernel.websocket.jupyter.org";

/// A websocket to a kernel.
#[derive(Debug)]
pub(super) struct KernelSocket(WebSocketStream<TcpStream>);

impl KernelSocket {
    /// Connects to a kernel.
    ///
    /// # Errors
    /// A sentence if that does not work.
    pub(super) async fn connect(
        address: SocketAddrV4,
        token: Option<&str>,
        kernel: &str,
    ) -> Result<Self, String> {
        let url = format!("ws://{address}/api/kernels/{kernel}/channels?session_id=bench");
        let mut request = url.into_client_request().map_err(|error| error.to_string())?;
        let subprotocol = HeaderValue::from_static(SUBPROTOCOL);
        request.headers_mut().insert("Sec-WebSocket-Protocol", subprotocol);
        if let Some(token) = token {
            let value = format!("token {token}").parse().map_err(|_| "a bad token".to_owned())?;
            request.headers_mut().insert("Authorization", value);
        }
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let connecting = timeout(READY_WITHIN, client_async(request, stream)).await;
        let connected = connecting.map_err(|_| "its websocket did not open in time".to_owned())?;
        connected.map(|(socket, _)| Self(socket)).map_err(|error| error.to_string())
    }

    /// Sends a request and waits until its reply and the `idle` status have both arrived; returns
    /// the reply.
    ///
    /// # Errors
    /// A sentence if the gateway closes the socket or takes too long.
    pub(super) async fn round_trip(
        &mut self,
        request: &JupyterMessage,
        msg_id: &str,
    ) -> Result<JupyterMessage, String> {
        let sent = self.0.send(Message::Binary(request.encode()));
        sent.await.map_err(|error| error.to_string())?;
        let answered = timeout(CELL_WITHIN, self.answer(msg_id, |_| ())).await;
        answered.map_err(|_| format!("no answer within {} s", CELL_WITHIN.as_secs()))?
    }

    /// The same with what the cell printed.
    ///
    /// # Errors
    /// As [`Self::round_trip`].
    pub(super) async fn printed(
        &mut self,
        request: &JupyterMessage,
        msg_id: &str,
    ) -> Result<String, String> {
        let sent = self.0.send(Message::Binary(request.encode()));
        sent.await.map_err(|error| error.to_string())?;
        let mut text = String::new();
        let answered = timeout(
            CELL_WITHIN,
            self.answer(msg_id, |message| {
                let content = message.parse_content::<Value>().unwrap_or_default();
                text += content["text"].as_str().unwrap_or_default();
            }),
        );
        let answered = answered.await;
        answered.map_err(|_| format!("no answer within {} s", CELL_WITHIN.as_secs()))??;
        Ok(text)
    }

    async fn answer(
        &mut self,
        msg_id: &str,
        mut output: impl FnMut(&JupyterMessage),
    ) -> Result<JupyterMessage, String> {
        let (mut reply, mut is_idle) = (None, false);
        loop {
            let frame: Bytes = match self.0.next().await {
                Some(Ok(Message::Binary(frame))) => frame,
                Some(Ok(Message::Close(_))) | None => return Err("it closed the socket".into()),
                Some(Ok(_)) => continue,
                Some(Err(error)) => return Err(error.to_string()),
            };
            let message = JupyterMessage::decode(&frame).map_err(|error| error.to_string())?;
            if message.parent_msg_id().as_deref() != Some(msg_id) {
                continue;
            }
            match message.channel {
                Channel::Shell => reply = Some(message),
                Channel::Iopub => {
                    output(&message);
                    is_idle |= says_idle(&message);
                }
                Channel::Control | Channel::Stdin => {}
            }
            if is_idle && let Some(reply) = reply.take() {
                return Ok(reply);
            }
        }
    }
}

fn says_idle(message: &JupyterMessage) -> bool {
    message.parse_header().is_ok_and(|header| header.msg_type == "status")
        && message
            .parse_content::<Value>()
            .is_ok_and(|content| content["execution_state"] == "idle")
}

/// One request on a connection of its own; the answer's JSON body.
pub(super) async fn http(
    address: SocketAddrV4,
    token: Option<&str>,
    method: &str,
    path: &str,
) -> Result<Value, String> {
    let authorization =
        token.map_or_else(String::new, |token| format!("Authorization: token {token}\r\n"));
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\n{authorization}Connection: close\r\nContent-Length: 0\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = timeout(READY_WITHIN, exchange).await.map_err(|_| "no answer".to_owned())?;
    let answer = answer.map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or("its answer is not HTTP")?;
    let status = head.lines().next().unwrap_or_default();
    if !status.contains(" 20") {
        return Err(format!("{method} {path} was answered with {status}"));
    }
    serde_json::from_str(body).map_err(|error| error.to_string())
}
