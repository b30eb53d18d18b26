import type { KubeObject } from "./types.ts";

/** Objects of certificates.k8s.io, by the rules of types.ts. */

export interface CertificateSigningRequest extends KubeObject {
  spec: {
    /** PEM of a PKCS#10 request, in base64. */
    request: string;
    signerName: string;
    usages?: string[];
    expirationSeconds?: number;
  };
  status?: {
    conditions?: { type: string; status?: string; reason?: string; message?: string }[];
    /** PEM, in base64. */
    certificate?: string;
  };
}

export interface ClusterTrustBundle extends KubeObject {
  /** `trustBundle`: PEM of certificates. */
  spec: { signerName?: string; trustBundle: string };
}

/** A pod's own certificate, as its node asks for it. All of `spec` is immutable. */
export interface PodCertificateRequest extends KubeObject {
  spec: {
    signerName: string;
    podName: string;
    podUID: string;
    serviceAccountName: string;
    serviceAccountUID: string;
    nodeName: string;
    nodeUID: string;
    maxExpirationSeconds?: number;
    /** DER of a PKCS#10 request that says nothing but the key, in base64. */
    stubPKCS10Request: string;
    unverifiedUserAnnotations?: Record<string, string>;
  };
  status?: {
    /** Types Issued, Denied and Failed. */
    conditions?: { type: string; status: string; reason?: string; message?: string; lastTransitionTime?: string }[];
    /** PEM, the pod's own certificate first. */
    certificateChain?: string;
    notBefore?: string;
    beginRefreshAt?: string;
    notAfter?: string;
  };
}
