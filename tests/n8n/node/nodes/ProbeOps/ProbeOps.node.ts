import type {
	IDataObject,
	IExecuteFunctions,
	INodeExecutionData,
	INodeType,
	INodeTypeDescription,
	IWebhookFunctions,
	IWebhookResponseData,
} from 'n8n-workflow';
import { NodeConnectionTypes, NodeOperationError } from 'n8n-workflow';

import { call, loadOptions, readCredential, readJob, receive } from '../shared/api';
import { jobFields } from '../shared/fields';

const HOUR_MS = 3_600_000;

export class ProbeOps implements INodeType {
	description: INodeTypeDescription = {
		displayName: 'ProbeOps',
		name: 'probeOps',
		icon: { light: 'file:../../icons/probeops.svg', dark: 'file:../../icons/probeops.dark.svg' },
		group: ['transform'],
		version: 1,
		subtitle: '={{$parameter["operation"] + ": " + ($parameter["tool"] ?? "")}}',
		description: 'Run network diagnostics from many places',
		defaults: { name: 'ProbeOps' },
		usableAsTool: true,
		inputs: [NodeConnectionTypes.Main],
		outputs: [NodeConnectionTypes.Main],
		credentials: [{ name: 'probeOpsApi', required: true }],
		webhooks: [
			{
				name: 'default',
				httpMethod: 'POST',
				responseMode: 'onReceived',
				path: '',
				restartWebhook: true,
			},
		],
		properties: [
			{
				displayName: 'Operation',
				name: 'operation',
				type: 'options',
				noDataExpression: true,
				options: [
					{
						name: 'Cancel a Job',
						value: 'cancel',
						description: 'End a job; what it found until then is kept',
						action: 'Cancel a job',
					},
					{
						name: 'Get a Job',
						value: 'get',
						description: 'Read a job and its results',
						action: 'Get a job',
					},
					{
						name: 'Run a Job',
						value: 'run',
						description: 'Run a tool from one place or many',
						action: 'Run a job',
					},
				],
				default: 'run',
			},
			...jobFields({ show: { operation: ['run'] } }),
			{
				displayName: 'Go On',
				name: 'goOn',
				type: 'options',
				options: [
					{
						name: 'At Once',
						value: 'atOnce',
						description: 'With the job as it begins; nobody is told its end',
					},
					{
						name: 'When the Callback Is There',
						value: 'callback',
						description:
							'The execution is parked, holds nothing and is resumed by ProbeOps, even after a restart of n8n',
					},
					{
						name: 'When the Job Is Over, or After a Time',
						value: 'wait',
						description: 'The connection is held for up to a minute',
					},
				],
				default: 'callback',
				displayOptions: { show: { operation: ['run'] } },
				description: 'When the workflow goes on. As a tool of an agent, do not choose the callback.',
			},
			{
				displayName: 'Wait at Most (Seconds)',
				name: 'waitSeconds',
				type: 'number',
				typeOptions: { minValue: 0, maxValue: 60 },
				default: 60,
				displayOptions: { show: { operation: ['run'], goOn: ['wait'] } },
				description: 'How long to wait for the end of the job; then it goes on with the job so far',
			},
			{
				displayName: 'Parked at Most (Hours)',
				name: 'parkHours',
				type: 'number',
				typeOptions: { minValue: 1, maxValue: 168 },
				default: 25,
				displayOptions: { show: { operation: ['run'], goOn: ['callback'] } },
				description:
					'When no callback came until then, the workflow goes on with the items that this node was given. ProbeOps tries for 24 hours.',
			},
			{
				displayName: 'Job ID',
				name: 'jobId',
				type: 'string',
				required: true,
				default: '',
				displayOptions: { show: { operation: ['cancel', 'get'] } },
				description: 'The ID of the job',
			},
		],
	};

	methods = { loadOptions };

	/** The URL goes with each job, so there is nothing to subscribe when the workflow is published. */
	webhookMethods = {
		default: {
			async checkExists(): Promise<boolean> {
				return true;
			},
			async create(): Promise<boolean> {
				return true;
			},
			async delete(): Promise<boolean> {
				return true;
			},
		},
	};

	async webhook(this: IWebhookFunctions): Promise<IWebhookResponseData> {
		return await receive(this);
	}

	async execute(this: IExecuteFunctions): Promise<INodeExecutionData[][]> {
		const items = this.getInputData();
		const parks =
			this.getNodeParameter('operation', 0) === 'run' &&
			this.getNodeParameter('goOn', 0) === 'callback';
		if (parks && items.length > 1) {
			throw new NodeOperationError(
				this.getNode(),
				`An execution can be parked for one job, not for ${items.length}`,
				{
					description:
						'Put a Loop Over Items node with a batch size of 1 before this node, choose several places for one job, or choose another way to go on',
				},
			);
		}
		const answers: INodeExecutionData[] = [];
		for (let itemIndex = 0; itemIndex < items.length; itemIndex++) {
			if (!this.continueOnFail()) {
				answers.push({ json: await one(this, itemIndex), pairedItem: { item: itemIndex } });
				continue;
			}
			try {
				answers.push({ json: await one(this, itemIndex), pairedItem: { item: itemIndex } });
			} catch (error) {
				const { message, description } = error as { message: string; description?: string };
				answers.push({ json: { error: message, description }, pairedItem: { item: itemIndex } });
				if (parks) return [answers];
			}
		}
		if (parks) {
			const hours = this.getNodeParameter('parkHours', 0) as number;
			await this.putExecutionToWait(new Date(Date.now() + hours * HOUR_MS));
		}
		return [answers];
	}
}

/** What is to be done for one item. */
async function one(context: IExecuteFunctions, itemIndex: number): Promise<IDataObject> {
	const operation = context.getNodeParameter('operation', itemIndex) as string;
	if (operation === 'run') return await run(context, itemIndex);
	const id = context.getNodeParameter('jobId', itemIndex) as string;
	return await call(context, {
		method: operation === 'cancel' ? 'DELETE' : 'GET',
		path: `/v1/jobs/${encodeURIComponent(id)}`,
		itemIndex,
	});
}

async function run(context: IExecuteFunctions, itemIndex: number): Promise<IDataObject> {
	const goOn = context.getNodeParameter('goOn', itemIndex) as string;
	const body = readJob(context, itemIndex);
	if (goOn === 'callback') {
		const { secret, secretId } = await readCredential(context);
		if (Boolean(secret) !== Boolean(secretId)) {
			throw new NodeOperationError(
				context.getNode(),
				'The credential has a signing secret without its ID, or the other way round',
				{ itemIndex },
			);
		}
		const url = context.evaluateExpression('{{ $execution.resumeUrl }}', itemIndex) as string;
		body.callback = { url, ...(secretId ? { secret_id: secretId } : {}) };
	}
	const wait = goOn === 'wait' ? (context.getNodeParameter('waitSeconds', itemIndex) as number) : 0;
	return await call(context, {
		method: 'POST',
		path: '/v1/jobs',
		body,
		headers: {
			prefer: goOn === 'wait' ? `wait=${wait}` : 'respond-async',
			// A retry of this node asks for the same job again, and not for another one.
			'idempotency-key': [
				'n8n',
				context.getInstanceId().slice(0, 16),
				context.getExecutionId(),
				context.getNode().id,
				context.evaluateExpression('{{ $runIndex }}', itemIndex),
				itemIndex,
			].join('-'),
		},
		itemIndex,
	});
}
