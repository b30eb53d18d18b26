import { join } from "node:path";
import { agentEnvironment } from "../config/environment.ts";
import { isGateOn } from "../config/feature-gates.ts";
import type { KubeletSettings } from "../config/load-kubelet.ts";
import type { ApiClient, EventRecorder } from "../kube/port.ts";
import { serviceAccounts } from "../kube/resources.ts";
import { podReference, specContainers } from "../pods/names.ts";
import type { TimelineRecorder } from "../pods/timeline-recorder.ts";
import {
  type AccountSource,
  type CredentialProviders,
  createCredentialProviders,
} from "../runtime/credential-provider.ts";
import { type CredentialProviderConfig, readCredentialProviders } from "../runtime/credential-provider-config.ts";
import { createNodeDockerConfig } from "../runtime/docker-config.ts";
import { createImageManager, type ImageManager, type ImageManagerOptions } from "../runtime/images.ts";
import { authsFor } from "../runtime/images-auth.ts";
import { openPullRecords, type PullRecords } from "../runtime/images-records.ts";
import type { Runtime } from "../runtime/port.ts";
import { createTokenManager, type TokenManager } from "../volumes/tokens.ts";
import type { Surroundings } from "./cluster.ts";
import type { KubeletMetrics } from "./kubelet-metrics.ts";
import { pullVerification } from "./kubelet-settings.ts";

export interface OpenImagesOptions {
  settings: KubeletSettings;
  client: ApiClient;
  runtime: Runtime;
  recorder: EventRecorder;
  measures: KubeletMetrics;
  timelines: Pick<TimelineRecorder, "pullProgress">;
  credentialProviders: CredentialProviderConfig | undefined;
}

// A pod's pull waits for this small object.
const accountTimeoutMs = 10_000;
// What the API server gives when nobody asks for a lifetime.
const tokenSeconds = 3_600;

/** The configuration of credential provider plugins, if there are any. Rejects with ConfigError. */
export async function loadCredentialProviders({
  flags: { imageCredentialProviderConfig: path, imageCredentialProviderBinDir: binDir },
  config: { featureGates },
}: KubeletSettings): Promise<CredentialProviderConfig | undefined> {
  const mayHaveTokens = isGateOn(featureGates, "KubeletServiceAccountTokenForCredentialProviders");
  return path === "" ? undefined : await readCredentialProviders(path, { binDir, mayHaveTokens });
}

/** Makes the part that pulls, with what it needs to know of credentials. */
export async function openImages(options: OpenImagesOptions, surroundings: Surroundings): Promise<ImageManager> {
  const { settings, client, runtime, recorder, measures, timelines } = options;
  const { clock, log } = surroundings;
  const { serializeImagePulls, maxParallelImagePulls, registryPullQPS, registryBurst } = settings.config;
  const tokens = createTokenManager({ client, clock, log });
  const providers = openProviders(options, tokens, surroundings);
  const home = agentEnvironment()["HOME"];
  const dockerConfig = createNodeDockerConfig({
    rootDir: settings.flags.rootDir,
    cwd: process.cwd(),
    home,
    clock,
    log,
  });
  const records = await openRecords(options, surroundings);
  const manager = createImageManager({
    images: runtime.images,
    clock,
    log,
    onEvent: eventOfContainer(recorder),
    serializeImagePulls,
    ...(maxParallelImagePulls === undefined ? {} : { maxParallelImagePulls }),
    registryPullQPS,
    registryBurst,
    ...(records === undefined ? {} : { records }),
    nodeCredentials: async (pod, repository) => {
      const ofNode = authsFor(repository, [await dockerConfig.keyring()]);
      return [...ofNode, ...((await providers?.credentials(pod, repository)) ?? [])];
    },
    metrics: measures.images,
    onPull: measures.pods.pull,
    onProgress: (pod, container, progress) => timelines.pullProgress(pod, container, progress),
  });
  return {
    ensureImage: manager.ensureImage,
    forgetPod: (podUID) => {
      manager.forgetPod(podUID);
      tokens.forget(podUID);
    },
  };
}

function openProviders(
  { client, credentialProviders: config, measures: { registry } }: OpenImagesOptions,
  tokens: TokenManager,
  { clock, log, stop }: Surroundings,
): CredentialProviders | undefined {
  if (config === undefined) return undefined;
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

async function openRecords(
  { settings, runtime, measures: { registry } }: OpenImagesOptions,
  { clock, log }: Surroundings,
): Promise<PullRecords | undefined> {
  const policy = pullVerification(settings);
  if (policy === undefined) return undefined;
  const dir = join(settings.flags.rootDir, "image_manager");
  const records = await openPullRecords({ dir, policy, now: () => clock.now(), log, registry });
  await records.recover(runtime.images);
  return records;
}

function eventOfContainer(recorder: EventRecorder): ImageManagerOptions["onEvent"] {
  return (pod, { name }, type, reason, message) => {
    const fieldPath = specContainers(pod).find(({ container }) => container.name === name)?.fieldPath;
    recorder.event(podReference(pod, fieldPath), type, reason, message);
  };
}
