//! A web server for tests: it records what it was asked, and answers by path.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A running server; it goes with the test's runtime.
#[derive(Clone)]
pub(super) struct Web {
    pub(super) address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Web {
    /// In clear, or over TLS. `answer` gets the request line and makes the whole answer.
    pub(super) async fn start(tls: Option<ServerConfig>, answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let web = Self { address: listener.local_addr().unwrap(), asked: Arc::default() };
        let (asked, answer) = (Arc::clone(&web.asked), Arc::new(answer));
        let acceptor = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (asked, answer, acceptor) = (Arc::clone(&asked), Arc::clone(&answer), acceptor.clone());
                tokio::spawn(async move {
                    match acceptor {
                        None => serve(stream, &asked, &*answer).await,
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                serve(stream, &asked, &*answer).await;
                            }
                        }
                    }
                });
            }
        });
        web
    }

    /// The heads and bodies of all requests so far.
    pub(super) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    pub(super) fn port(&self) -> u16 {
        self.address.port()
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, asked: &Mutex<Vec<String>>, answer: &(dyn Fn(&str) -> Vec<u8> + Sync)) {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    // Whole when the body is as long as it says.
    while !is_whole(&request) {
        match stream.read(&mut buffer).await {
            Ok(length) if length > 0 => request.extend(&buffer[..length]),
            Ok(_) | Err(_) => return,
        }
    }
    let text = String::from_utf8_lossy(&request).into_owned();
    let line = text.lines().next().unwrap_or_default().to_owned();
    asked.lock().unwrap().push(text);
    drop(stream.write_all(&answer(&line)).await);
    drop(stream.shutdown().await);
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse::<usize>().ok());
    body.len() >= length.unwrap_or(0)
}

/// An answer with a body.
pub(super) fn page(status: &str, fields: &[&str], body: &[u8]) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n", body.len());
    for field in fields {
        head += field;
        head += "\r\n";
    }
    [head.as_bytes(), b"\r\n", body].concat()
}
