//! What ProbeOps is compared with: the least that turns an HTTP request into a message and its answer back, in as many processes.
//! No TLS, no credentials, no limits, no state, no audit.

use std::net::SocketAddr;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use bytes::Bytes;
use futures_util::StreamExt;

const SUBJECT: &str = "relay.echo";

/// Answers every message with its own body.
pub(crate) async fn respond(broker: &str) -> anyhow::Result<()> {
    let client = async_nats::connect(broker).await.context("responder: no broker")?;
    let mut messages = client.queue_subscribe(SUBJECT, "w".to_owned()).await?;
    while let Some(message) = messages.next().await {
        if let Some(reply) = message.reply {
            client.publish(reply, message.payload).await?;
        }
    }
    Ok(())
}

/// Serves HTTP: the body goes to a responder, its answer goes back.
pub(crate) async fn serve(broker: &str, listen: SocketAddr) -> anyhow::Result<()> {
    let client = async_nats::connect(broker).await.context("relay: no broker")?;
    let app = Router::new().route("/relay", post(relay)).with_state(client);
    let listener = tokio::net::TcpListener::bind(listen).await?;
    axum::serve(listener, app).await?;
    Ok(())
}

async fn relay(State(client): State<async_nats::Client>, body: Bytes) -> Result<Bytes, StatusCode> {
    let answer = client.request(SUBJECT, body).await.map_err(|_| StatusCode::BAD_GATEWAY)?;
    Ok(answer.payload)
}
