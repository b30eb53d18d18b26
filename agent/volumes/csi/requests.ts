import type { ApiClient } from "../../kube/port.ts";
import { secrets } from "../../kube/resources.ts";
import type { CSIDriver, Pod, Secret } from "../../kube/types.ts";
import { AgentError, withContext } from "../../lib/errors.ts";
import { abortable } from "../../lib/abortable.ts";
import type { ObjectSource } from "../port.ts";
import type { TokenManager } from "../tokens.ts";
import type { CSIMap } from "./port.ts";
import { podInfo, type SecretRef, type CSIVolume } from "./volume.ts";

// What the API server grants where a CSIDriver object says nothing.
export const tokenSecondsDefault = 3_600;
const tokensKey = "csi.storage.k8s.io/serviceAccount.tokens";

/** Reads a Secret by its name. */
export type SecretReader = (ref: SecretRef, signal: AbortSignal) => Promise<Secret>;

/** Secrets of PersistentVolumes, as they are at this moment: no pod names them, so nobody follows them. */
export function secretsOfVolumes(client: ApiClient | undefined): SecretReader {
  return async (ref, signal) => {
    if (client === undefined) throw new AgentError("Invalid", "there is no API server that could have it");
    return await client.get(secrets, ref, { signal });
  };
}

/** Secrets that a pod names itself: whoever misses one is woken when it appears. */
export function secretsOfPods(objects: Pick<ObjectSource, "secret">): SecretReader {
  return async ({ namespace, name }, signal) => await abortable(objects.secret(namespace, name), signal);
}

/**
 * The values of a Secret for a driver; none without a reference.
 * @param what the field that names it, for the error
 */
export async function readSecret(
  read: SecretReader,
  ref: SecretRef | undefined,
  what: string,
  signal: AbortSignal,
): Promise<CSIMap> {
  if (ref === undefined) return {};
  const { namespace, name } = ref;
  try {
    const { data = {} } = await read(ref, signal);
    return Object.fromEntries(
      Object.entries(data).map(([key, value]) => [key, Buffer.from(value, "base64").toString("utf8")]),
    );
  } catch (err) {
    if (signal.aborted) throw err;
    throw withContext(err, `fetching ${what} ${namespace}/${name} failed`);
  }
}

/** What a driver is told beside the volume's own attributes and secret, by its CSIDriver object. */
export interface PublishExtras {
  volumeContext: CSIMap;
  secrets: CSIMap;
  /** Unix ms from which on one of the tokens should be replaced; undefined: there are none. */
  refreshAtMs: number | undefined;
}

/** The pod's name and tokens of its service account, for drivers that ask for them. */
export async function publishExtras(
  pod: Pod,
  volume: Pick<CSIVolume, "isEphemeral">,
  object: CSIDriver | undefined,
  tokens: Pick<TokenManager, "token">,
  signal: AbortSignal,
): Promise<PublishExtras> {
  const { podInfoOnMount = false, tokenRequests = [], serviceAccountTokenInSecrets = false } = object?.spec ?? {};
  const info = podInfoOnMount ? podInfo(pod, volume.isEphemeral) : {};
  if (tokenRequests.length === 0) return { volumeContext: info, secrets: {}, refreshAtMs: undefined };
  const asked = await Promise.all(
    tokenRequests.map(async ({ audience, expirationSeconds = tokenSecondsDefault }) => {
      const audiences = audience === "" ? [] : [audience];
      return { audience, token: await tokens.token(pod, { audiences, expirationSeconds }, signal) };
    }),
  );
  const byAudience = asked.map(({ audience, token: { token, expiresAtMs } }) => [
    audience,
    { token, expirationTimestamp: new Date(expiresAtMs).toISOString().replace(/\.\d+Z$/, "Z") },
  ]);
  const held = { [tokensKey]: JSON.stringify(Object.fromEntries(byAudience)) };
  return {
    volumeContext: serviceAccountTokenInSecrets ? info : { ...info, ...held },
    secrets: serviceAccountTokenInSecrets ? held : {},
    refreshAtMs: Math.min(...asked.map(({ token }) => token.refreshAtMs)),
  };
}
