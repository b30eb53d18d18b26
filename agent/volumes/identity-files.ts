import { allContainers } from "../kube/pod-resources.ts";
import type { ClusterTrustBundleProjection, Pod, VolumeProjection } from "../kube/types.ts";
import { AgentError } from "../lib/errors.ts";
import { abortable } from "../lib/abortable.ts";
import type { Content } from "./config-volume.ts";
import type { FileContent } from "./payload.ts";
import type { CertificateSource, PodCertificates } from "./pod-certificates.ts";
import type { TokenManager } from "./tokens.ts";
import type { TrustBundles } from "./trust-bundles.ts";

/** Files of projected volumes that say who a pod is and whom it may trust. */

// What the API server fills in; a static pod may lack it.
const tokenSecondsDefault = 3600;
// Only the owner reads such a file; the group may, once it is the pod's own (applyFSGroup adds the bit).
const privateMode = 0o600;

/**
 * The user that every container of the pod runs as by its spec, or undefined if they differ or one of them does not say.
 * What belongs to that user needs to be readable by nobody else.
 */
export function commonUser(pod: Pod): number | undefined {
  const podUser = pod.spec.securityContext?.runAsUser;
  const [first, ...others] = allContainers(pod).map(({ securityContext }) => securityContext?.runAsUser ?? podUser);
  return others.every((user) => user === first) ? first : undefined;
}

/** The file with owner and mode: private as soon as it is known who is to read it. Pure. */
export function identityFile(pod: Pod, text: string, defaultMode: number): FileContent {
  const uid = commonUser(pod);
  const isPrivate = uid !== undefined || pod.spec.securityContext?.fsGroup !== undefined;
  return {
    data: Buffer.from(text),
    mode: isPrivate ? privateMode : defaultMode,
    ...(uid === undefined ? {} : { uid }),
  };
}

interface Means {
  asFile(text: string): FileContent;
  signal: AbortSignal;
}

export async function tokenFile(
  source: NonNullable<VolumeProjection["serviceAccountToken"]>,
  { pod, tokens, asFile, signal }: Means & { pod: Pod; tokens: Pick<TokenManager, "token"> },
): Promise<Content> {
  const { audience = "", expirationSeconds = tokenSecondsDefault, path } = source;
  const audiences = audience === "" ? [] : [audience];
  const { token, refreshAtMs } = await tokens.token(pod, { audiences, expirationSeconds }, signal);
  return { payload: new Map([[path, asFile(token)]]), refreshAtMs };
}

export async function trustFile(
  source: ClusterTrustBundleProjection,
  { bundles, asFile, signal }: Means & { bundles: TrustBundles },
): Promise<Content> {
  const pem = await abortable(bundles.anchors(source, signal), signal);
  return { payload: new Map([[source.path, asFile(pem)]]) };
}

/** Up to three files: key and chain together, and each by itself. */
export async function certificateFiles(
  source: CertificateSource,
  { certificates, asFile, signal }: Means & { certificates: PodCertificates },
): Promise<Content> {
  const { credentialBundlePath = "", keyPath = "", certificateChainPath = "" } = source.projection;
  const { keyPem, chainPem, refreshAtMs } = await abortable(certificates.certificate(source, signal), signal);
  const files: [path: string, text: string][] = [
    [credentialBundlePath, keyPem + chainPem],
    [keyPath, keyPem],
    [certificateChainPath, chainPem],
  ];
  const wanted = files.filter(([path]) => path !== "");
  if (wanted.length === 0) {
    throw new AgentError(
      "Invalid",
      "podCertificate: credentialBundlePath, keyPath or certificateChainPath is required",
    );
  }
  return { payload: new Map(wanted.map(([path, text]) => [path, asFile(text)])), refreshAtMs };
}
