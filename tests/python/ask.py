"""Publishes one job straight to the broker, as README shows, and prints the outcome.

Arguments: broker address, authority file, credential file, service name, region, tool, target.
Exit codes: 0 an outcome was printed, 3 nobody listens there, 4 the broker forbade it, 5 no answer.
"""

import asyncio
import json
import secrets
import ssl
import sys

import nats


async def main(server, ca, creds, name, region, tool, target):
    forbidden = asyncio.get_running_loop().create_future()

    async def on_error(error):
        # A publication that is not granted reaches the client only like this, on the side.
        if "permissions violation" in str(error).lower() and not forbidden.done():
            forbidden.set_result(str(error))

    nc = await nats.connect(server, tls=ssl.create_default_context(cafile=ca), user_credentials=creds, error_cb=on_error)
    inbox = f"_INBOX.{name}.{secrets.token_hex(16)}"
    answers = await nc.subscribe(f"{inbox}.*")
    job = {"request_id": secrets.token_hex(8), "tool": tool, "target": target, "parameters": {"timeout": 2}}
    await nc.publish(f"job.v1.{region}.{tool}.{name}", json.dumps(job).encode(), reply=f"{inbox}._")
    answer = asyncio.ensure_future(answers.next_msg(timeout=20))
    done, _ = await asyncio.wait([answer, forbidden], return_when=asyncio.FIRST_COMPLETED)
    if forbidden in done:
        answer.cancel()
        print(forbidden.result(), file=sys.stderr)
        return 4
    try:
        message = answer.result()
    except nats.errors.TimeoutError:
        print("no answer", file=sys.stderr)
        return 5
    if message.subject.endswith("._") and (message.headers or {}).get("Status") == "503":
        print("nobody listens there", file=sys.stderr)
        return 3
    print(message.data.decode())
    await nc.close()
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:])))
