import type {
	IDataObject,
	IHookFunctions,
	INodeType,
	INodeTypeDescription,
	IWebhookFunctions,
	IWebhookResponseData,
} from 'n8n-workflow';
import { NodeConnectionTypes, NodeOperationError } from 'n8n-workflow';

import { call, loadOptions, readCredential, readJob, receive } from '../shared/api';
import { jobFields } from '../shared/fields';

/** A schedule that is not there (any more). */
const NOT_FOUND = 404;

export class ProbeOpsTrigger implements INodeType {
	description: INodeTypeDescription = {
		displayName: 'ProbeOps Trigger',
		name: 'probeOpsTrigger',
		icon: { light: 'file:../../icons/probeops.svg', dark: 'file:../../icons/probeops.dark.svg' },
		group: ['trigger'],
		version: 1,
		subtitle: '={{$parameter["tool"]}}',
		description: 'Start a workflow with the results of a schedule of ProbeOps',
		defaults: { name: 'ProbeOps Trigger' },
		inputs: [],
		outputs: [NodeConnectionTypes.Main],
		credentials: [{ name: 'probeOpsApi', required: true }],
		webhooks: [
			{ name: 'default', httpMethod: 'POST', responseMode: 'onReceived', path: 'probeops' },
		],
		properties: [
			{
				displayName:
					'The schedule is made in ProbeOps when the workflow is published, and deleted when it no longer is. The credential needs a signing secret.',
				name: 'notice',
				type: 'notice',
				default: '',
			},
			{
				displayName: 'Schedule',
				name: 'schedule',
				type: 'options',
				options: [
					{ name: 'By a Cron Expression', value: 'cron' },
					{ name: 'Every So Often', value: 'every' },
				],
				default: 'every',
			},
			{
				displayName: 'Every',
				name: 'every',
				type: 'string',
				default: '15m',
				required: true,
				placeholder: '15m',
				displayOptions: { show: { schedule: ['every'] } },
				description: 'How often: a number and s, m, h or d',
			},
			{
				displayName: 'Cron Expression',
				name: 'cron',
				type: 'string',
				default: '0 0 * * * *',
				required: true,
				placeholder: '0 30 2 * * *',
				displayOptions: { show: { schedule: ['cron'] } },
				description: 'Six fields: second, minute, hour, day of month, month, day of week',
			},
			{
				displayName: 'Time Zone',
				name: 'timeZone',
				type: 'string',
				default: '',
				placeholder: 'Europe/Berlin',
				displayOptions: { show: { schedule: ['cron'] } },
				description: 'Whose clock the expression goes by; that of the workflow when empty',
			},
			...jobFields(),
		],
	};

	methods = { loadOptions };

	webhookMethods = {
		default: {
			async checkExists(this: IHookFunctions): Promise<boolean> {
				const id = this.getWorkflowStaticData('node').scheduleId as string | undefined;
				if (id === undefined) return false;
				const found = await call(this, {
					method: 'GET',
					path: `/v1/schedules/${encodeURIComponent(id)}`,
					expected: [NOT_FOUND],
				});
				return found.id === id;
			},

			async create(this: IHookFunctions): Promise<boolean> {
				const { secret, secretId } = await readCredential(this);
				if (!secret || !secretId) {
					throw new NodeOperationError(this.getNode(), 'The credential has no signing secret', {
						description:
							'The URL of a trigger is no secret: make a signing secret (POST /v1/secrets) for the origin of this n8n, and give it and its ID to the credential',
					});
				}
				const schedule = this.getNodeParameter('schedule') as string;
				const when: IDataObject = { [schedule]: this.getNodeParameter(schedule) as string };
				if (schedule === 'cron') {
					when.time_zone = (this.getNodeParameter('timeZone', '') as string) || this.getTimezone();
				}
				const url = this.getNodeWebhookUrl('default');
				const made = await call(this, {
					method: 'POST',
					path: '/v1/schedules',
					body: { ...readJob(this, 0), ...when, callback: { url, secret_id: secretId } },
				});
				this.getWorkflowStaticData('node').scheduleId = made.id;
				return true;
			},

			async delete(this: IHookFunctions): Promise<boolean> {
				const data = this.getWorkflowStaticData('node');
				const id = data.scheduleId as string | undefined;
				if (id === undefined) return true;
				await call(this, {
					method: 'DELETE',
					path: `/v1/schedules/${encodeURIComponent(id)}`,
					expected: [NOT_FOUND],
				});
				delete data.scheduleId;
				return true;
			},
		},
	};

	async webhook(this: IWebhookFunctions): Promise<IWebhookResponseData> {
		return await receive(this);
	}
}
