import type { ApiClient } from "../../kube/port.ts";
import { secrets } from "../../kube/resources.ts";
import type { CSIDriver, Pod } from "../../kube/types.ts";
import { AgentError, messageOf } from "../../lib/errors.ts";
import type { TokenManager } from "../tokens.ts";
import type { CSIMap } from "./port.ts";
import { podInfo, type SecretRef, type CSIVolume } from "./volume.ts";

// What the API server grants where a CSIDriver object says nothing.
export const tokenSecondsDefault = 3_600;
const tokensKey = "csi.storage.k8s.io/serviceAccount.tokens";

/**
 * The values of a Secret, as it is at this moment: a driver is never given one that was replaced.
 * @param what the field that names it, for the error
 */
export async function readSecret(
  client: ApiClient | undefined,
  ref: SecretRef | undefined,
  what: string,
  signal: AbortSignal,
): Promise<CSIMap> {
  if (ref === undefined) return {};
  const { namespace, name } = ref;
  try {
    if (client === undefined) throw new AgentError("Invalid", "there is no API server that could have it");
    const { data = {} } = await client.get(secrets, { namespace, name }, { signal });
    return Object.fromEntries(
      Object.entries(data).map(([key, value]) => [key, Buffer.from(value, "base64").toString("utf8")]),
    );
  } catch (err) {
    if (signal.aborted) throw err;
    const code = err instanceof AgentError ? err.code : "Internal";
    const message = `fetching ${what} ${namespace}/${name} failed: ${messageOf(err)}`;
    throw new AgentError(code, message, { cause: err });
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
