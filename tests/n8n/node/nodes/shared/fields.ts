import type { IDisplayOptions, INodeProperties } from 'n8n-workflow';

/** What a job is and where it runs, shown when `displayOptions` says. */
export function jobFields(displayOptions?: IDisplayOptions): INodeProperties[] {
	const fields: INodeProperties[] = [
		{
			displayName: 'Tool Name or ID',
			name: 'tool',
			type: 'options',
			typeOptions: { loadOptionsMethod: 'getTools' },
			required: true,
			default: '',
			description:
				'What to run. Choose from the list, or specify an ID using an <a href="https://docs.n8n.io/code/expressions/">expression</a>.',
		},
		{
			displayName: 'Target',
			name: 'target',
			type: 'string',
			default: '',
			placeholder: 'example.com',
			description: 'What to run it against: a name, an address or a URL, as the tool wants it',
		},
		{
			displayName: 'Region Names or IDs',
			name: 'regions',
			type: 'multiOptions',
			typeOptions: { loadOptionsMethod: 'getRegions' },
			default: [],
			description:
				'Where to run it. Choose from the list, or specify IDs using an <a href="https://docs.n8n.io/code/expressions/">expression</a>.',
		},
		{
			displayName: 'Nodes of Each Region',
			name: 'take',
			type: 'options',
			options: [
				{ name: 'Any One', value: 'any' },
				{ name: 'Every One', value: 'all' },
			],
			default: 'any',
			description: 'Whether one node of each region runs it, or every node',
		},
		{
			displayName: 'Node Names or IDs',
			name: 'nodes',
			type: 'multiOptions',
			typeOptions: { loadOptionsMethod: 'getNodes' },
			default: [],
			description:
				'Single nodes to run it on, besides the regions. Choose from the list, or specify IDs using an <a href="https://docs.n8n.io/code/expressions/">expression</a>.',
		},
		{
			displayName: 'Selectors',
			name: 'selectors',
			type: 'string',
			typeOptions: { multipleValues: true, multipleValueButtonText: 'Add Selector' },
			default: [],
			placeholder: 'site=fra:all',
			description: 'Other places, such as by label, besides the regions and nodes',
		},
		{
			displayName: 'Options',
			name: 'options',
			type: 'json',
			default: '{}',
			placeholder: '{"count": 3}',
			description: 'Options of the tool, as JSON; /v1/tools of your ProbeOps describes them',
		},
	];
	return displayOptions === undefined
		? fields
		: fields.map((field) => ({ ...field, displayOptions }));
}
