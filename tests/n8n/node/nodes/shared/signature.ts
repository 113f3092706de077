import { createHmac, timingSafeEqual } from 'crypto';

/** How far the clocks of the API and of n8n may be apart, in seconds. */
const TOLERANCE_S = 300;

export interface Headers {
	[name: string]: string | string[] | undefined;
}

/**
 * Why a callback is not from ProbeOps, by Standard Webhooks 1.0.0; undefined when it is.
 * Several signatures are sent while a secret is being replaced: one that fits is enough.
 */
export function objection(
	secret: string,
	headers: Headers,
	body: Buffer,
	nowMs: number,
): string | undefined {
	const id = headers['webhook-id'];
	const timestamp = headers['webhook-timestamp'];
	const signatures = headers['webhook-signature'];
	if (typeof id !== 'string' || typeof timestamp !== 'string' || typeof signatures !== 'string') {
		return 'the callback is not signed';
	}
	if (!/^\d+$/.test(timestamp) || Math.abs(nowMs / 1000 - Number(timestamp)) > TOLERANCE_S) {
		return `webhook-timestamp is more than ${TOLERANCE_S} s from now`;
	}
	const key = Buffer.from(secret.replace(/^whsec_/, ''), 'base64');
	const expected = createHmac('sha256', key).update(`${id}.${timestamp}.`).update(body).digest();
	const fits = signatures.split(' ').some((signature) => {
		if (!signature.startsWith('v1,')) return false;
		const given = Buffer.from(signature.slice('v1,'.length), 'base64');
		return given.length === expected.length && timingSafeEqual(given, expected);
	});
	return fits ? undefined : 'webhook-signature does not fit';
}
