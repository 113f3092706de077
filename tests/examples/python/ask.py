"""Asks straight over NATS with nats-py (pip install 'nats-py[nkeys]'): a node for one outcome, the same with what happens on the way, the API's
front door, and what the broker forbids.

    python3 ask.py tls://127.0.0.1:4222 .probeops/tls/ca.pem .probeops/services/billing.creds billing demo-eu
"""

import asyncio
import json
import secrets
import ssl
import sys

import nats

TIMEOUT_S = 70


async def main(server, ca, creds, name, region):
    # A publication that is not granted is told only here, on the side: whoever waits for an answer to it waits in vain.
    forbidden = asyncio.Queue()

    async def on_error(error):
        forbidden.put_nowait(error)

    nc = await nats.connect(
        server,
        tls=ssl.create_default_context(cafile=ca),
        user_credentials=creds,
        inbox_prefix=f"_INBOX_f.{name}".encode(),  # where the front door answers; ours alone: the broker lets nobody else subscribe it
        error_cb=on_error,
    )

    async def ask(subject, reply, answers, body, headers=None):
        """Publishes, and yields every message of the answer: what it is, and its body."""
        subscription = await nc.subscribe(answers)
        await nc.publish(subject, json.dumps(body).encode(), reply=reply, headers=headers)
        while True:
            message = await subscription.next_msg(timeout=TIMEOUT_S)
            if not message.data and (message.headers or {}).get("Status") == "503":
                raise RuntimeError("nobody listens")
            event = (message.headers or {}).get("Probe-Event")
            yield event, json.loads(message.data) if message.data else None, message

    # 1. A node, directly: one question, one outcome. The last token of the answer's subject is the node, which the broker attests.
    def direct(**parameters):
        token = secrets.token_hex(16)
        job = {"request_id": token, "tool": "ping", "target": "127.0.0.1", "parameters": parameters}
        return f"job.v1.{region}.ping.{name}", f"_INBOX.{name}.{token}._", f"_INBOX.{name}.{token}.*", job

    async for _, outcome, message in ask(*direct(count=1)):
        print(f"outcome: {outcome['status']} from {message.subject.rsplit('.', 1)[1]}")
        break

    # 2. The same, told as it happens.
    async for event, body, _ in ask(*direct(count=2, interval_ms=100), {"Probe-Events": "1"}):
        print(f"event: {event} {(body or {}).get('output', '').splitlines()[:1]}")
        if event == "outcome":
            break

    # 3. The front door: the body of POST /v1/jobs, with its selectors, retries and audit; the whole job comes back.
    job = {"tool": "ping", "target": "127.0.0.1", "from": region, "parameters": {"count": 2, "interval_ms": 100}}
    answer = await nc.request(f"api.v1.run.{name}", json.dumps(job).encode(), timeout=TIMEOUT_S)
    done = json.loads(answer.data)
    print(f"job: {done['status']} with {len(done['results'])} outcome")

    # 4. With events, on the same inbox; the answer itself is the message without Probe-Event.
    inbox = nc.new_inbox()
    async for event, body, _ in ask(f"api.v1.run.{name}", inbox, inbox, job, {"Probe-Events": "1"}):
        print(f"door: {event or body['status']}")
        if event is None:
            break

    # 5. What is not granted: the front door says so at once, the broker only on the side.
    answer = await nc.request(f"api.v1.run.{name}", json.dumps({**job, "from": "elsewhere"}).encode(), timeout=TIMEOUT_S)
    problem = json.loads(answer.data)
    print(f"problem: {answer.headers['Nats-Service-Error-Code']} {problem['code']}")
    await nc.publish(f"job.v1.elsewhere.ping.{name}", b"{}")
    error = await asyncio.wait_for(forbidden.get(), TIMEOUT_S)
    print(f"forbidden: {error}")
    await nc.close()


asyncio.run(main(*sys.argv[1:]))
