import { agentEnvironment } from "../config/environment.ts";
import { isGateOn } from "../config/feature-gates.ts";
import type { KubeletSettings } from "../config/load-kubelet.ts";
import type { ApiClient } from "../kube/port.ts";
import { serviceAccounts } from "../kube/resources.ts";
import type { Pod } from "../kube/types.ts";
import {
  type AccountSource,
  type CredentialProviders,
  createCredentialProviders,
} from "../runtime/credential-provider.ts";
import { readCredentialProviders } from "../runtime/credential-provider-config.ts";
import { createNodeDockerConfig } from "../runtime/docker-config.ts";
import { authsFor, type ImageCredential } from "../runtime/images-auth.ts";
import { createTokenManager, type TokenManager } from "../volumes/tokens.ts";
import type { Surroundings } from "./cluster.ts";
import type { KubeletMetrics } from "./kubelet-metrics.ts";

/** The node's own credentials for images: of its docker configuration, and of its plugins. */
export interface NodeCredentials {
  /** What to try for a repository, in order. `pod` is whose image it is; undefined for one of the node itself. Never rejects. */
  find(pod: Pod | undefined, repository: string): Promise<ImageCredential[]>;
  /** Drops what is kept for a pod that is gone. */
  forgetPod(podUID: string): void;
}

export interface OpenCredentialsOptions {
  settings: KubeletSettings;
  client: ApiClient;
  measures: Pick<KubeletMetrics, "registry">;
}

// A pod's pull waits for this small object.
const accountTimeoutMs = 10_000;
// What the API server gives when nobody asks for a lifetime.
const tokenSeconds = 3_600;

/** Rejects with ConfigError for a configuration of plugins that cannot be used. */
export async function openNodeCredentials(
  options: OpenCredentialsOptions,
  surroundings: Surroundings,
): Promise<NodeCredentials> {
  const { settings, client } = options;
  const { clock, log } = surroundings;
  const tokens = createTokenManager({ client, clock, log });
  const providers = await openProviders(options, tokens, surroundings);
  const home = agentEnvironment()["HOME"];
  const { rootDir } = settings.flags;
  const dockerConfig = createNodeDockerConfig({ rootDir, cwd: process.cwd(), home, clock, log });
  return {
    find: async (pod, repository) => {
      const ofFiles = authsFor(repository, [await dockerConfig.keyring()]);
      return [...ofFiles, ...((await providers?.credentials(pod, repository)) ?? [])];
    },
    forgetPod: (podUID) => tokens.forget(podUID),
  };
}

async function openProviders(
  { settings, client, measures: { registry } }: OpenCredentialsOptions,
  tokens: TokenManager,
  { clock, log, stop }: Surroundings,
): Promise<CredentialProviders | undefined> {
  const { imageCredentialProviderConfig: path, imageCredentialProviderBinDir: binDir } = settings.flags;
  if (path === "") return undefined;
  const mayHaveTokens = isGateOn(settings.config.featureGates, "KubeletServiceAccountTokenForCredentialProviders");
  const config = await readCredentialProviders(path, { binDir, mayHaveTokens });
  const accounts: AccountSource = {
    account: async ({ metadata: { namespace = "default" } }, name) => {
      const callOptions = { signal: stop, timeoutMs: accountTimeoutMs };
      const { metadata } = await client.get(serviceAccounts, { namespace, name }, callOptions);
      return { namespace, name, uid: metadata.uid ?? "", annotations: metadata.annotations ?? {} };
    },
    token: async (pod, audience) =>
      (await tokens.token(pod, { audiences: [audience], expirationSeconds: tokenSeconds }, stop)).token,
  };
  log.info({ providers: config.providers.map(({ name }) => name), hash: config.hash }, "image credential providers");
  return createCredentialProviders({ config, accounts, env: agentEnvironment(), stop, clock, log, registry });
}
