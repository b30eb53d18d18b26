import { allContainers } from "../kube/pod-resources.ts";
import type { Pod, VolumeProjection } from "../kube/types.ts";
import { AgentError, messageOf } from "../lib/errors.ts";
import { abortable } from "./abortable.ts";
import type { FileContent, Payload } from "./payload.ts";
import { configMapFiles, getOptional, selectKeys } from "./config-map.ts";
import { type Content, defaultModeDefault, setUpConfigVolume } from "./config-volume.ts";
import { downwardAPIFiles } from "./downward-api.ts";
import type { VolumeContext, VolumeKind } from "./kind.ts";
import { secretFiles } from "./secret.ts";

// What the API server fills in; a static pod may lack it.
const tokenSecondsDefault = 3600;
// Only the owner reads a token; the group may, once it is the pod's own (applyFSGroup adds the bit).
const privateTokenMode = 0o600;

/** Several sources in one directory, kept in memory. */
export const projectedKind: VolumeKind = {
  field: "projected",
  pluginName: "kubernetes.io/projected",
  isReadOnly: true,
  isRelabelled: true,
  isRefreshed: true,
  setUp: (context) => setUpConfigVolume(context, "Memory", () => collectSources(context)),
};

/**
 * The user that every container of the pod runs as by its spec, or undefined if they differ or one of them does not say.
 * A token that belongs to that user needs to be readable by nobody else.
 */
export function commonUser(pod: Pod): number | undefined {
  const podUser = pod.spec.securityContext?.runAsUser;
  const [first, ...others] = allContainers(pod).map(({ securityContext }) => securityContext?.runAsUser ?? podUser);
  return others.every((user) => user === first) ? first : undefined;
}

/** All sources are tried, so that one error names everything that is missing; a later source wins a path. */
async function collectSources(context: VolumeContext): Promise<Content> {
  const sources = context.volume.projected?.sources ?? [];
  const results = await Promise.allSettled(sources.map((source) => collectSource(context, source)));
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

async function collectSource(context: VolumeContext, source: VolumeProjection): Promise<Content> {
  const { pod, deps, volume, signal } = context;
  const { defaultMode = defaultModeDefault } = volume.projected ?? {};
  const namespace = pod.metadata.namespace ?? "default";
  if (source.configMap !== undefined) {
    const { name = "", items, optional = false } = source.configMap;
    const object = await getOptional(optional, () => abortable(deps.objects.configMap(namespace, name), signal));
    return { payload: selectKeys(configMapFiles(object), { items, defaultMode, optional, what: "config" }) };
  }
  if (source.secret !== undefined) {
    const { name = "", items, optional = false } = source.secret;
    const object = await getOptional(optional, () => abortable(deps.objects.secret(namespace, name), signal));
    return { payload: selectKeys(secretFiles(object), { items, defaultMode, optional, what: "secret" }) };
  }
  if (source.downwardAPI !== undefined) {
    const items = source.downwardAPI.items ?? [];
    return { payload: downwardAPIFiles(pod, items, defaultMode, deps.nodeAllocatable()) };
  }
  if (source.serviceAccountToken !== undefined) return collectToken(context, source.serviceAccountToken, defaultMode);
  const kind = Object.keys(source)[0] ?? "(none)";
  throw new AgentError("Invalid", `projected source ${kind} is not supported yet by nodelet`);
}

async function collectToken(
  { pod, deps, signal }: VolumeContext,
  source: NonNullable<VolumeProjection["serviceAccountToken"]>,
  defaultMode: number,
): Promise<Content> {
  const { audience = "", expirationSeconds = tokenSecondsDefault, path } = source;
  const audiences = audience === "" ? [] : [audience];
  const { token, refreshAtMs } = await deps.tokens.token(pod, { audiences, expirationSeconds }, signal);
  const uid = commonUser(pod);
  const isPrivate = uid !== undefined || pod.spec.securityContext?.fsGroup !== undefined;
  const mode = isPrivate ? privateTokenMode : defaultMode;
  const payload: Payload = new Map([[path, { data: Buffer.from(token), mode, ...(uid === undefined ? {} : { uid }) }]]);
  return { payload, refreshAtMs };
}
