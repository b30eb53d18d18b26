import { uidOf } from "../kube/pod-resources.ts";
import type { VolumeProjection } from "../kube/types.ts";
import { AgentError, messageOf } from "../lib/errors.ts";
import { type Content, defaultModeDefault, setUpConfigVolume } from "./config-volume.ts";
import { downwardAPIFiles } from "./downward-api.ts";
import { certificateFiles, identityFile, tokenFile, trustFile } from "./identity-files.ts";
import type { VolumeContext, VolumeKind } from "./kind.ts";
import { configMapPayload, secretPayload } from "./object-files.ts";
import type { FileContent } from "./payload.ts";
import type { PodCertificates } from "./pod-certificates.ts";
import type { TrustBundles } from "./trust-bundles.ts";

/** What some sources need that not every node has: each is behind a feature gate. */
export interface ProjectedOptions {
  trustBundles?: TrustBundles;
  podCertificates?: PodCertificates;
}

/** Several sources in one directory, kept in memory: the kind of projected volumes of one node. */
export function createProjectedKind(options: ProjectedOptions): VolumeKind {
  const { trustBundles, podCertificates } = options;
  const usersOfBundles = new Set<string>();
  const kind: VolumeKind = {
    field: "projected",
    pluginName: "kubernetes.io/projected",
    isReadOnly: true,
    isRelabelled: true,
    isRefreshed: true,
    setUp(context) {
      const sources = context.volume.projected?.sources ?? [];
      const usesBundles = sources.some(({ clusterTrustBundle }) => clusterTrustBundle !== undefined);
      // Before anything is read: a change in between must not be missed.
      if (usesBundles) usersOfBundles.add(uidOf(context.pod));
      return setUpConfigVolume(context, "Memory", () => collectSources(context, sources, options));
    },
  };
  if (trustBundles === undefined && podCertificates === undefined) return kind;
  return {
    ...kind,
    subscribe(listener) {
      const ends = [
        trustBundles?.onChange(() => {
          for (const podUID of usersOfBundles) listener(podUID);
        }),
        podCertificates?.onChange(listener),
      ];
      return () => {
        for (const end of ends) end?.();
      };
    },
    forget(podUID) {
      usersOfBundles.delete(podUID);
      podCertificates?.forget(podUID);
    },
  };
}

/** All sources are tried, so that one error names everything that is missing; a later source wins a path. */
async function collectSources(
  context: VolumeContext,
  sources: readonly VolumeProjection[],
  options: ProjectedOptions,
): Promise<Content> {
  const results = await Promise.allSettled(
    sources.map((source, index) => collectSource(context, source, { ...options, index })),
  );
  const errors = results.flatMap((result) => (result.status === "rejected" ? [result.reason as unknown] : []));
  const [first] = errors;
  if (first !== undefined) {
    const code = first instanceof AgentError ? first.code : "Internal";
    const message = errors.length === 1 ? messageOf(first) : `[${errors.map(messageOf).join(", ")}]`;
    throw new AgentError(code, message, { cause: first });
  }
  const payload = new Map<string, FileContent>();
  let refreshAtMs: number | undefined;
  for (const result of results) {
    if (result.status === "rejected") continue;
    for (const [path, file] of result.value.payload) payload.set(path, file);
    const at = result.value.refreshAtMs;
    if (at !== undefined) refreshAtMs = Math.min(at, refreshAtMs ?? at);
  }
  return { payload, ...(refreshAtMs === undefined ? {} : { refreshAtMs }) };
}

async function collectSource(
  context: VolumeContext,
  source: VolumeProjection,
  { trustBundles, podCertificates, index }: ProjectedOptions & { index: number },
): Promise<Content> {
  const { pod, deps, volume, signal } = context;
  const { defaultMode = defaultModeDefault } = volume.projected ?? {};
  if (source.configMap !== undefined) {
    return { payload: await configMapPayload(source.configMap, defaultMode, context) };
  }
  if (source.secret !== undefined) return { payload: await secretPayload(source.secret, defaultMode, context) };
  if (source.downwardAPI !== undefined) {
    const items = source.downwardAPI.items ?? [];
    return { payload: downwardAPIFiles(pod, items, defaultMode, deps.nodeAllocatable()) };
  }
  const asFile = (text: string) => identityFile(pod, text, defaultMode);
  if (source.serviceAccountToken !== undefined) {
    return await tokenFile(source.serviceAccountToken, { pod, tokens: deps.tokens, asFile, signal });
  }
  if (source.clusterTrustBundle !== undefined) {
    const bundles = behindGate(trustBundles, "clusterTrustBundle", "ClusterTrustBundleProjection");
    return await trustFile(source.clusterTrustBundle, { bundles, asFile, signal });
  }
  if (source.podCertificate !== undefined) {
    const certificates = behindGate(podCertificates, "podCertificate", "PodCertificateRequest");
    const what = { pod, volumeName: volume.name, index, projection: source.podCertificate };
    return await certificateFiles(what, { certificates, asFile, signal });
  }
  const kind = Object.keys(source)[0] ?? "(none)";
  throw new AgentError("Invalid", `projected source ${kind} is not supported by nodelet`);
}

function behindGate<T>(part: T | undefined, source: string, gate: string): T {
  if (part !== undefined) return part;
  throw new AgentError(
    "Unimplemented",
    `projected source ${source} needs an API server and the feature gate ${gate} on this node`,
  );
}
