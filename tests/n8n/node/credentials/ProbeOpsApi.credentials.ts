import type {
	IAuthenticateGeneric,
	ICredentialTestRequest,
	ICredentialType,
	INodeProperties,
	Icon,
} from 'n8n-workflow';

export class ProbeOpsApi implements ICredentialType {
	name = 'probeOpsApi';

	displayName = 'ProbeOps API';

	icon: Icon = { light: 'file:../icons/probeops.svg', dark: 'file:../icons/probeops.dark.svg' };

	documentationUrl = 'https://probeops.example/n8n';

	properties: INodeProperties[] = [
		{
			displayName: 'URL',
			name: 'url',
			type: 'string',
			required: true,
			default: '',
			placeholder: 'https://probeops.example',
			description: 'Where the API of ProbeOps is, without a path',
		},
		{
			displayName: 'API Key',
			name: 'token',
			type: 'string',
			typeOptions: { password: true },
			required: true,
			default: '',
			description:
				'A key with the scopes <code>jobs:write</code>, <code>jobs:read</code> and <code>nodes:read</code>',
		},
		{
			displayName: 'Signing Secret ID',
			name: 'secretId',
			type: 'string',
			default: '',
			description:
				'The ID of a secret for the origin of this n8n (<code>POST /v1/secrets</code>). With it callbacks are signed, and only signed ones are taken.',
		},
		{
			displayName: 'Signing Secret',
			name: 'secret',
			type: 'string',
			typeOptions: { password: true },
			default: '',
			placeholder: 'whsec_…',
			description: 'The secret itself, as it was shown when it was made',
		},
	];

	authenticate: IAuthenticateGeneric = {
		type: 'generic',
		properties: { headers: { Authorization: '=Bearer {{$credentials.token}}' } },
	};

	test: ICredentialTestRequest = {
		request: {
			baseURL: '={{$credentials.url.replace(new RegExp("/+$"), "")}}',
			url: '/v1/regions',
			qs: { limit: 1 },
		},
	};
}
