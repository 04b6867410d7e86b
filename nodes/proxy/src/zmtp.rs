//! The publisher's side of ZMTP 3.0 without security: greeting, `READY`, frames. Pure.
//! Source: <https://rfc.zeromq.org/spec/23/>.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// What both sides say first: signature, version 3.0, mechanism `NULL`, not a server.
pub(crate) const GREETING_BYTES: usize = 64;

/// The longest frame of a subscriber: a topic, or the properties of its socket.
const FRAME_BYTES_MAX: usize = 4_096;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// Why a connection is no subscriber's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a ZeroMQ subscriber: {0}")]
pub(crate) struct ZmtpError(&'static str);

/// What a subscriber says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    /// It is a socket of this type.
    Ready(Bytes),
    Subscribe(Bytes),
    Unsubscribe(Bytes),
    /// Nothing of interest to a publisher.
    Other,
}

/// What the publisher says first.
pub(crate) fn greeting() -> [u8; GREETING_BYTES] {
    let mut greeting = [0; GREETING_BYTES];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

/// Checks what the other side says first.
///
/// # Errors
/// [`ZmtpError`] if it speaks something else.
pub(crate) fn check_greeting(greeting: &[u8; GREETING_BYTES]) -> Result<(), ZmtpError> {
    let is_zmtp = greeting[0] == 0xff && greeting[9] & 1 == 1 && greeting[10] >= 3;
    let mechanism = &greeting[12..32];
    if !is_zmtp {
        return Err(ZmtpError("it does not speak ZMTP 3"));
    }
    if mechanism.split(|byte| *byte == 0).next() != Some(b"NULL") {
        return Err(ZmtpError("it asks for a security mechanism"));
    }
    Ok(())
}

/// The command that ends the handshake.
pub(crate) fn ready() -> Bytes {
    let mut body = BytesMut::from(&b"\x05READY\x0bSocket-Type"[..]);
    body.put_u32(4);
    body.put_slice(b"XPUB");
    let mut out = BytesMut::new();
    put_frame(&mut out, COMMAND, &body);
    out.freeze()
}

/// A message of these frames on the wire.
pub(crate) fn message(frames: &[Bytes]) -> Bytes {
    let length = frames.iter().map(|frame| frame.len() + 9).sum();
    let mut out = BytesMut::with_capacity(length);
    for (index, frame) in frames.iter().enumerate() {
        let flags = if index + 1 < frames.len() { MORE } else { 0 };
        put_frame(&mut out, flags, frame);
    }
    out.freeze()
}

fn put_frame(out: &mut BytesMut, flags: u8, body: &[u8]) {
    match u8::try_from(body.len()) {
        Ok(length) => out.put_slice(&[flags, length]),
        Err(_) => {
            out.put_u8(flags | LONG);
            out.put_u64(body.len() as u64);
        }
    }
    out.put_slice(body);
}

/// Takes what a subscriber says off the front of `buffer`; `None` if it has not all come.
///
/// # Errors
/// [`ZmtpError`] if it makes no sense.
pub(crate) fn take(buffer: &mut BytesMut) -> Result<Option<Said>, ZmtpError> {
    let [flags, rest @ ..] = &buffer[..] else { return Ok(None) };
    let flags = *flags;
    let is_long = flags & LONG != 0;
    let mut rest = rest;
    let width = if is_long { 8 } else { 1 };
    if rest.len() < width {
        return Ok(None);
    }
    let length = if is_long { rest.get_u64() } else { rest.get_u8().into() };
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > FRAME_BYTES_MAX {
        return Err(ZmtpError("its frame is too long"));
    }
    if rest.len() < length {
        return Ok(None);
    }
    buffer.advance(1 + width);
    let body = buffer.split_to(length).freeze();
    Ok(Some(if flags & COMMAND != 0 { command(&body)? } else { subscription(&body) }))
}

fn subscription(body: &Bytes) -> Said {
    match body.first() {
        Some(1) => Said::Subscribe(body.slice(1..)),
        Some(0) => Said::Unsubscribe(body.slice(1..)),
        _ => Said::Other,
    }
}

fn command(body: &Bytes) -> Result<Said, ZmtpError> {
    match body.split_first() {
        Some((5, rest)) if rest.starts_with(b"READY") => Ok(Said::Ready(socket_type(body)?)),
        Some((5, rest)) if rest.starts_with(b"ERROR") => Err(ZmtpError("it refused")),
        // As ZMTP 3.1 has it.
        Some((9, rest)) if rest.starts_with(b"SUBSCRIBE") => Ok(Said::Subscribe(body.slice(10..))),
        Some((6, rest)) if rest.starts_with(b"CANCEL") => Ok(Said::Unsubscribe(body.slice(7..))),
        _ => Ok(Said::Other),
    }
}

/// The property `Socket-Type` of a `READY` command.
fn socket_type(ready: &Bytes) -> Result<Bytes, ZmtpError> {
    const BAD: ZmtpError = ZmtpError("its READY is malformed");
    let mut rest = ready.slice(6..);
    while rest.has_remaining() {
        let name_length = usize::from(rest.get_u8());
        if rest.len() < name_length + 4 {
            return Err(BAD);
        }
        let name = rest.split_to(name_length);
        let length = usize::try_from(rest.get_u32()).unwrap_or(usize::MAX);
        if rest.len() < length {
            return Err(BAD);
        }
        let value = rest.split_to(length);
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            return Ok(value);
        }
    }
    Err(BAD)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn our_own_greeting_and_ready_are_understood() {
        assert_eq!(check_greeting(&greeting()), Ok(()));
        let mut buffer = BytesMut::from(&ready()[..]);
        assert_eq!(take(&mut buffer), Ok(Some(Said::Ready(Bytes::from_static(b"XPUB")))));
        assert!(buffer.is_empty());
    }

    #[test]
    fn subscriptions_are_read_in_both_versions_of_the_protocol() {
        let mut buffer = BytesMut::from(&b"\x00\x01\x01\x00\x03\x01ab\x04\x0c\x09SUBSCRIBEab"[..]);
        let ab = Bytes::from_static(b"ab");
        assert_eq!(take(&mut buffer), Ok(Some(Said::Subscribe(Bytes::new()))));
        assert_eq!(take(&mut buffer), Ok(Some(Said::Subscribe(ab.clone()))));
        assert_eq!(take(&mut buffer), Ok(Some(Said::Subscribe(ab.clone()))));
        buffer.extend_from_slice(b"\x00\x03\x00ab\x04\x09\x06CANCELab");
        assert_eq!(take(&mut buffer), Ok(Some(Said::Unsubscribe(ab.clone()))));
        assert_eq!(take(&mut buffer), Ok(Some(Said::Unsubscribe(ab))));
        assert_eq!(take(&mut buffer), Ok(None));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..200)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = take(&mut buffer) {}
        }

        #[test]
        fn a_frame_is_taken_only_once_it_has_all_come(
            body in vec(any::<u8>(), 0..600), cut in any::<prop::sample::Index>(),
        ) {
            let whole = message(&[Bytes::from(body)]);
            let mut buffer = BytesMut::from(&whole[..cut.index(whole.len())]);
            prop_assert_eq!(take(&mut buffer), Ok(None));
            let missing = whole.slice(buffer.len()..);
            buffer.extend_from_slice(&missing);
            prop_assert!(matches!(take(&mut buffer), Ok(Some(_))));
            prop_assert!(buffer.is_empty());
        }
    }
}
