//! The smallest HTTP/1.1 client that can post spans: plain TCP, one request per connection.
//!
//! Called only from the exporter's own thread, which may block.

use std::{
    io::{self, Read as _, Write as _},
    net::{TcpStream, ToSocketAddrs as _},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use opentelemetry_http::{HttpClient, HttpError};

/// Most bytes of an answer that are read; a collector's answer is a few dozen.
const ANSWER_LENGTH_MAX: u64 = 64 * 1024;
/// Port of a collector whose address names none.
const PORT_DEFAULT: u16 = 80;

#[derive(Debug)]
pub(super) struct PlainHttp {
    timeout: Duration,
}

impl PlainHttp {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout }
    }

    fn post(&self, request: &Request<Bytes>) -> io::Result<Response<Bytes>> {
        let uri = request.uri();
        let host = uri.host().ok_or_else(|| invalid("the address has no host"))?;
        let port = uri.port_u16().unwrap_or(PORT_DEFAULT);
        // An IPv6 address stands in brackets in a URI and without them everywhere else.
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let address = (bare, port)
            .to_socket_addrs()?
            .next()
            .ok_or_else(|| invalid("the host has no address"))?;
        let mut stream = TcpStream::connect_timeout(&address, self.timeout)?;
        stream.set_read_timeout(Some(self.timeout))?;
        stream.set_write_timeout(Some(self.timeout))?;
        let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let mut head = format!("{} {path} HTTP/1.1\r\nhost: {host}:{port}\r\n", request.method());
        for (name, value) in request.headers() {
            let value = value.to_str().map_err(|_| invalid("a header is not text"))?;
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let length = request.body().len();
        head.push_str(&format!("content-length: {length}\r\nconnection: close\r\n\r\n"));
        stream.write_all(head.as_bytes())?;
        stream.write_all(request.body())?;
        let mut answer = Vec::new();
        stream.take(ANSWER_LENGTH_MAX).read_to_end(&mut answer)?;
        parse(&answer)
    }
}

/// Reads the status; the body of an answer is not used.
fn parse(answer: &[u8]) -> io::Result<Response<Bytes>> {
    let line = answer.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let status = std::str::from_utf8(line)
        .ok()
        .filter(|line| line.starts_with("HTTP/1."))
        .and_then(|line| line.split(' ').nth(1))
        .and_then(|code| StatusCode::from_bytes(code.trim().as_bytes()).ok())
        .ok_or_else(|| invalid("the answer is not HTTP"))?;
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = status;
    Ok(response)
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[async_trait]
impl HttpClient for PlainHttp {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        Ok(self.post(&request)?)
    }
}
