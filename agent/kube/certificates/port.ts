import type { CertificatePair } from "./pair.ts";

/** A certificate that may change. It has the shape that the kubelet's server wants. */
export interface CertificateSource {
  /** Undefined while there is none that is valid. */
  current(): CertificatePair | undefined;
  /** Calls `listener` after `current` changed. @returns ends it */
  subscribe(listener: () => void): () => void;
}
