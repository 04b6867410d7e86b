//! Messages that are too large for a client: a stream is split, anything else is kept in the kernel's
//! log and becomes a preview with a link. Clients that meet a larger frame drop the connection, and
//! the message with it, without a word.

use bytes::Bytes;
use callboard_client::said::Said;
use callboard_protocol::{KernelId, jupyter::JupyterMessage, kernel::SessionPlace};
use serde_json::{Value, json};

/// Longest text of a stream message that is split, in bytes.
const STREAM_BYTES_MAX: usize = 1 << 20;
/// Bytes of a large text that are shown.
const PREVIEW_BYTES: usize = 2_000;

/// The message as one or more that a client can take.
pub(crate) fn fit(
    kernel: KernelId,
    message: JupyterMessage,
    place: Option<SessionPlace>,
    limit: usize,
) -> Vec<JupyterMessage> {
    let length = message.content.len() + message.buffers.iter().map(Bytes::len).sum::<usize>();
    if length <= STREAM_BYTES_MAX.min(limit) {
        return vec![message];
    }
    let msg_type = message.parse_header().map(|header| header.msg_type).unwrap_or_default();
    let Ok(mut content) = message.parse_content::<Value>() else { return vec![message] };
    if msg_type == "stream"
        && let Some(text) = content["text"].as_str().map(str::to_owned)
    {
        return pieces(&text)
            .map(|piece| {
                content["text"] = piece.into();
                JupyterMessage { content: Bytes::from(content.to_string()), ..message.clone() }
            })
            .collect();
    }
    if length <= limit {
        return vec![message];
    }
    let megabytes = length.div_ceil(1 << 20);
    let link = place.map(|place| format!("/api/kernels/{kernel}/outputs/{}", place.cursor));
    let kept = link.as_ref().map_or_else(String::new, |link| format!("; it is kept at {link}"));
    let text = format!("[callboard] {msg_type} of {megabytes} MiB is too large to be sent{kept}");
    if !content["data"].is_object() {
        let said = Said { kernel, parent: &message.parent_header };
        return vec![said.notice(&format!("{text}\n"))];
    }
    let preview: String = content["data"]["text/plain"].as_str().map_or_else(String::new, preview);
    let plain = if preview.is_empty() { text.clone() } else { format!("{text}\n{preview}…") };
    content["data"] = json!({ "text/plain": plain });
    if let Some(link) = link {
        content["data"]["text/html"] =
            format!("<p>{text}</p><p><a href=\"{link}\">{link}</a></p>").into();
    }
    vec![JupyterMessage {
        content: Bytes::from(content.to_string()),
        buffers: Vec::new(),
        ..message
    }]
}

fn preview(text: &str) -> String {
    text[..boundary(text, PREVIEW_BYTES)].to_owned()
}

/// The last place between characters that is not after `at`.
fn boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default()
}

/// The text in pieces of at most [`STREAM_BYTES_MAX`], cut between characters.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (piece, after) = rest.split_at(boundary(rest, STREAM_BYTES_MAX));
        rest = after;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use callboard_protocol::{Term, jupyter::Channel, kernel::OutputCursor};

    use super::*;

    fn message(msg_type: &str, content: &Value) -> JupyterMessage {
        let header = json!({ "msg_id": "m", "msg_type": msg_type });
        JupyterMessage {
            channel: Channel::Iopub,
            header: Bytes::from(header.to_string()),
            parent_header: Bytes::from_static(b"{}"),
            metadata: Bytes::from_static(b"{}"),
            content: Bytes::from(content.to_string()),
            buffers: Vec::new(),
        }
    }

    #[test]
    fn a_large_stream_comes_in_pieces_that_make_up_the_whole() {
        let text = "é".repeat(STREAM_BYTES_MAX);
        let stream = message("stream", &json!({ "name": "stdout", "text": text }));
        let parts = fit(KernelId::generate(), stream, None, usize::MAX);
        assert!(parts.len() >= 2);
        let texts = parts.iter().map(|part| part.parse_content::<Value>().unwrap());
        let whole: String =
            texts.map(|content| content["text"].as_str().unwrap().to_owned()).collect();
        assert_eq!(whole, text);
    }

    #[test]
    fn a_large_picture_becomes_a_link_to_where_it_is_kept() {
        let data =
            json!({ "data": { "image/png": "A".repeat(3 << 20), "text/plain": "<Figure>" } });
        let cursor = OutputCursor { term: Term(2), number: 7 };
        let place = Some(SessionPlace { cursor, replay_from: cursor });
        let picture = message("display_data", &data);
        let whole = fit(KernelId::generate(), picture.clone(), place, 9 << 20);
        assert_eq!(whole, std::slice::from_ref(&picture));
        let shown = fit(KernelId::generate(), picture, place, 2 << 20);
        let content: Value = shown[0].parse_content().unwrap();
        assert!(content["data"].get("image/png").is_none());
        let html = content["data"]["text/html"].as_str().unwrap();
        assert!(html.contains("/outputs/2.7\"") && html.contains("4 MiB"), "{html}");
    }
}
