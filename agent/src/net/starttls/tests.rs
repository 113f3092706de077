//! Dialogues with servers that say what real ones say.

use tokio::net::{TcpListener, TcpStream};

use super::*;

/// A server that says each of these after it has heard the words before it.
async fn asks(protocol: StartTls, script: &[(&[u8], &[u8])]) -> Result<(), String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        for (hears, says) in script {
            let mut heard = vec![0; hears.len()];
            stream.read_exact(&mut heard).await.unwrap();
            assert_eq!(heard.escape_ascii().to_string(), hears.escape_ascii().to_string());
            stream.write_all(says).await.unwrap();
        }
        stream
    };
    let ask = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        start(&mut stream, protocol, Duration::from_secs(5)).await
    };
    let (asked, _stream) = tokio::join!(ask, serve);
    asked
}

const EHLO: &[u8] = b"EHLO probeops.invalid\r\n";

#[tokio::test]
async fn each_protocol_comes_to_tls() {
    let smtp: &[(&[u8], &[u8])] = &[(b"", b"220-a\r\n220 b\r\n"), (EHLO, b"250-x\r\n250 starttls\r\n"), (b"STARTTLS\r\n", b"220 go\r\n")];
    assert_eq!(asks(StartTls::Smtp, smtp).await, Ok(()));
    let imap: &[(&[u8], &[u8])] = &[(b"", b"* OK hello\r\n"), (b"a STARTTLS\r\n", b"* CAPABILITY x\r\na OK go\r\n")];
    assert_eq!(asks(StartTls::Imap, imap).await, Ok(()));
    assert_eq!(asks(StartTls::Pop3, &[(b"", b"+OK\r\n"), (b"STLS\r\n", b"+OK\r\n")]).await, Ok(()));
    let ftp: &[(&[u8], &[u8])] = &[(b"", b"220-Welcome\r\nto us\r\n220 x\r\n"), (b"AUTH TLS\r\n", b"234 x\r\n")];
    assert_eq!(asks(StartTls::Ftp, ftp).await, Ok(()));
    assert_eq!(asks(StartTls::Postgres, &[(&POSTGRES_REQUEST, b"S")]).await, Ok(()));
    let payload = [b"\x0a8.0.1\0", &[1, 0, 0, 0][..], &[9; 8], &[0], &[0xff, 0xff], &[0; 20]].concat();
    let greeting = [&[u8::try_from(payload.len()).unwrap(), 0, 0, 0][..], &payload].concat();
    let request = [&[32, 0, 0, 1][..], &[0x01, 0x8a, 0, 0, 0, 0, 0, 1, 33], &[0; 23]].concat();
    assert_eq!(asks(StartTls::Mysql, &[(b"", &greeting), (&request, b"")]).await, Ok(()));
}

#[tokio::test]
async fn a_server_that_will_not_says_why() {
    let refuses = async |protocol, script: &[(&[u8], &[u8])], why: &str| {
        assert_eq!(asks(protocol, script).await.unwrap_err(), why);
    };
    refuses(StartTls::Smtp, &[(b"", b"554 no\r\n")], "the server answered the connection with `554 no`").await;
    refuses(StartTls::Smtp, &[(b"", b"220 x\r\n"), (EHLO, b"250 x\r\n")], "the server does not offer STARTTLS").await;
    refuses(StartTls::Imap, &[(b"", b"* OK x\r\n"), (b"a STARTTLS\r\n", b"a BAD x\r\n")], "the server answered STARTTLS with `BAD x`")
        .await;
    refuses(StartTls::Pop3, &[(b"", b"-ERR\r\n")], "the server answered the connection with `-ERR`").await;
    refuses(StartTls::Postgres, &[(&POSTGRES_REQUEST, b"N")], "the server does not speak TLS (it answered SSLRequest with N)").await;
    refuses(StartTls::Mysql, &[(b"", b"\x05\0\0\0\xff\x15\x04no")], "the server answered with `no`").await;
    let injected: &[(&[u8], &[u8])] = &[(b"", b"+OK\r\n"), (b"STLS\r\n", b"+OK\r\n+OK injected\r\n")];
    refuses(StartTls::Pop3, injected, "the server goes on in clear after it let TLS begin").await;
}
