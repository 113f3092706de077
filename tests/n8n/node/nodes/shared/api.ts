import type {
	IDataObject,
	IExecuteFunctions,
	IHookFunctions,
	IHttpRequestMethods,
	IHttpRequestOptions,
	ILoadOptionsFunctions,
	INodeExecutionData,
	INodePropertyOptions,
	IWebhookFunctions,
	IWebhookResponseData,
	JsonObject,
} from 'n8n-workflow';
import { NodeApiError, NodeOperationError } from 'n8n-workflow';

import { objection } from './signature';

export const CREDENTIAL = 'probeOpsApi';

type Context = IExecuteFunctions | IHookFunctions | ILoadOptionsFunctions;

export interface Credential {
	url: string;
	token: string;
	secretId?: string;
	secret?: string;
}

export interface Request {
	method: IHttpRequestMethods;
	path: string;
	query?: IDataObject;
	body?: IDataObject;
	headers?: IDataObject;
	/** Statuses that are an answer although they are errors. */
	expected?: number[];
	itemIndex?: number;
}

/** How long a request may take, in milliseconds: the API waits for a job for at most a minute. */
const TIMEOUT_MS = 90_000;
/** So many entries of a list are asked for at once. */
const PAGE_ENTRIES = 500;

export async function readCredential(context: Context | IWebhookFunctions): Promise<Credential> {
	return await context.getCredentials<Credential>(CREDENTIAL);
}

/** Asks the API. A refusal becomes an error that says what ProbeOps says of it. */
export async function call(context: Context, request: Request): Promise<IDataObject> {
	const { url } = await readCredential(context);
	const options: IHttpRequestOptions = {
		method: request.method,
		url: `${url.replace(/\/+$/, '')}${request.path}`,
		qs: request.query,
		body: request.body,
		headers: { accept: 'application/json', ...request.headers },
		json: true,
		timeout: TIMEOUT_MS,
		returnFullResponse: true,
		ignoreHttpStatusErrors: true,
	};
	let response: { statusCode: number; body: IDataObject };
	try {
		response = await context.helpers.httpRequestWithAuthentication.call(context, CREDENTIAL, options);
	} catch (error) {
		throw new NodeApiError(context.getNode(), error as JsonObject, { itemIndex: request.itemIndex });
	}
	const { statusCode, body } = response;
	if (statusCode < 300 || request.expected?.includes(statusCode)) return body ?? {};
	throw new NodeApiError(context.getNode(), (body ?? {}) as JsonObject, {
		message: typeof body?.title === 'string' ? body.title : `ProbeOps answered ${statusCode}`,
		description: typeof body?.detail === 'string' ? body.detail : undefined,
		httpCode: String(statusCode),
		itemIndex: request.itemIndex,
	});
}

/** All entries of a list that is read in pages. */
async function list(context: Context, path: string, field: string): Promise<IDataObject[]> {
	const entries: IDataObject[] = [];
	let cursor: string | undefined;
	do {
		const page = await call(context, {
			method: 'GET',
			path,
			query: { limit: PAGE_ENTRIES, ...(cursor === undefined ? {} : { cursor }) },
		});
		entries.push(...(page[field] as IDataObject[]));
		cursor = page.next as string | undefined;
	} while (cursor !== undefined);
	return entries;
}

export const loadOptions = {
	async getTools(this: ILoadOptionsFunctions): Promise<INodePropertyOptions[]> {
		const { tools } = await call(this, { method: 'GET', path: '/v1/tools' });
		return (tools as IDataObject[]).map((tool) => ({
			name: String(tool.name),
			value: String(tool.name),
			description: String(tool.summary),
		}));
	},

	async getRegions(this: ILoadOptionsFunctions): Promise<INodePropertyOptions[]> {
		const regions = await list(this, '/v1/regions', 'regions');
		return [
			{ name: 'All Regions', value: '*' },
			...regions.map((region) => ({
				name: `${region.region} (${region.online} of ${region.nodes} nodes online)`,
				value: String(region.region),
			})),
		];
	},

	async getNodes(this: ILoadOptionsFunctions): Promise<INodePropertyOptions[]> {
		const nodes = await list(this, '/v1/nodes', 'nodes');
		return nodes.map((node) => ({
			name: `${node.id} (${node.region})`,
			value: `node:${node.id}`,
		}));
	},
};

/** The fields of a job that `jobFields` asks for. */
export function readJob(context: IExecuteFunctions | IHookFunctions, itemIndex: number): IDataObject {
	const read = (name: string, fallback: unknown): unknown =>
		'getInputData' in context
			? context.getNodeParameter(name, itemIndex, fallback)
			: context.getNodeParameter(name, fallback as object);
	const suffix = read('take', 'any') === 'all' ? ':all' : '';
	const from = [
		...(read('regions', []) as string[]).map((region) => `${region}${suffix}`),
		...(read('nodes', []) as string[]),
		...(read('selectors', []) as string[]),
	].filter((selector) => selector !== '');
	if (from.length === 0) {
		throw new NodeOperationError(context.getNode(), 'No place is chosen', {
			description: 'Choose a region or a node, or write a selector, for the job to run from',
			itemIndex,
		});
	}
	const target = read('target', '') as string;
	return {
		tool: read('tool', '') as string,
		...(target === '' ? {} : { target }),
		parameters: readOptions(context, read('options', {}), itemIndex),
		from,
	};
}

function readOptions(
	context: IExecuteFunctions | IHookFunctions,
	given: unknown,
	itemIndex: number,
): IDataObject {
	let options = given;
	if (typeof given === 'string') {
		try {
			options = given.trim() === '' ? {} : JSON.parse(given);
		} catch (error) {
			throw new NodeOperationError(context.getNode(), 'The options are not JSON', {
				description: (error as Error).message,
				itemIndex,
			});
		}
	}
	if (typeof options !== 'object' || options === null || Array.isArray(options)) {
		throw new NodeOperationError(context.getNode(), 'The options are not a JSON object', {
			description: 'Such as {"count": 3}',
			itemIndex,
		});
	}
	return options as IDataObject;
}

/**
 * Takes a callback: its job goes on into the workflow. One that is not ProbeOps' gets 401, starts nothing and ends no waiting; so does, with 400, one
 * that tells of no job.
 */
export async function receive(context: IWebhookFunctions): Promise<IWebhookResponseData> {
	const { secret } = await readCredential(context);
	const refuse = (status: number, message: string): IWebhookResponseData => {
		context.getResponseObject().status(status).json({ message });
		return { noWebhookResponse: true };
	};
	if (secret) {
		const raw = context.getRequestObject().rawBody;
		const why = objection(secret, context.getHeaderData(), raw ?? Buffer.alloc(0), Date.now());
		if (why !== undefined) return refuse(401, why);
	}
	const { type, data } = context.getBodyData();
	if (type !== 'job.completed' || typeof data !== 'object' || data === null) {
		return refuse(400, 'not a callback of type job.completed');
	}
	const item: INodeExecutionData = { json: data as IDataObject, pairedItem: { item: 0 } };
	return { workflowData: [[item]] };
}
