import { AgentError } from "../../lib/errors.ts";
import type { MetricsRegistry } from "../../lib/metrics.ts";
import { type Access, createAccess } from "../access.ts";
import { createApiClient } from "../client.ts";
import { createInformerFactory } from "../informer.ts";
import type { KubeDeps } from "../port.ts";
import { type ClientConfig, readClientConfig } from "./bootstrap.ts";
import { CertificateManager } from "./manager.ts";
import { clientCertificateMetrics } from "./metrics.ts";
import type { SigningApi, SigningOrder } from "./signing.ts";
import { PemStore } from "./store.ts";
import type { CertificateTemplate } from "./x509.ts";

export interface ClientIdentityOptions {
  kubeconfig: string;
  /** "": none. */
  bootstrapKubeconfig: string;
  /** --cert-dir */
  certDir: string;
  nodeName: string;
  userAgent: string;
  metrics?: MetricsRegistry;
}

/** The node's own identity on the API server: a client certificate that is renewed. */
export interface ClientIdentity {
  /** Presents the certificate. Its `credentials` reject with Unavailable while there is none. */
  readonly access: Access;
  /** Calls `listener` after the certificate changed: connections are to be made anew. @returns ends it */
  subscribe(listener: () => void): () => void;
  /**
   * Gets the first certificate, and renews it until `signal` aborts. Rejects if there is none and only a new start of the
   * agent can help.
   */
  run(signal: AbortSignal): Promise<void>;
}

/** Certificates by which a kubelet is a client. */
export const clientSigner: Pick<SigningOrder, "signerName" | "usages"> = {
  signerName: "kubernetes.io/kube-apiserver-client-kubelet",
  usages: ["digital signature", "client auth"],
};

/** What the client certificate of a node says. Pure. */
export function clientTemplate(nodeName: string): CertificateTemplate {
  return { commonName: `system:node:${nodeName}`, organizations: ["system:nodes"], dnsNames: [], ips: [] };
}

/** The store of client certificates. */
export function clientStore(certDir: string, { log }: KubeDeps): PemStore {
  return new PemStore({ dir: certDir, prefix: "kubelet-client", log });
}

/**
 * Opens the identity of a kubelet that rotates its client certificate. Nothing is sent yet. Whatever user the kubeconfig
 * names serves to request the first certificate only. Rejects with Invalid if no kubeconfig can be used.
 */
export async function openClientIdentity(options: ClientIdentityOptions, deps: KubeDeps): Promise<ClientIdentity> {
  const { kubeconfig, bootstrapKubeconfig, certDir, nodeName, userAgent, metrics } = options;
  const store = clientStore(certDir, deps);
  await store.recover(); // the kubeconfig may name what only this brings back
  const { currentPath } = store;
  const config = await readClientConfig({ kubeconfig, bootstrapKubeconfig, currentPath }, deps);
  const template = clientTemplate(nodeName);
  const manager: CertificateManager = new CertificateManager(
    {
      ...clientSigner,
      purpose: "client",
      store,
      template: () => template,
      openApi: () => openSigningApi(manager.current() === undefined ? config.request : access, userAgent, deps),
      isEssential: true,
      ...(metrics === undefined ? {} : { observer: clientCertificateMetrics(metrics, () => manager, deps.clock) }),
    },
    deps,
  );
  const access = ownAccess(config, () => manager.current(), deps);
  manager.subscribe(() => access.invalidate());
  await manager.load(config.initial);
  return {
    access,
    subscribe: (listener) => manager.subscribe(listener),
    run: (signal) => manager.run(signal),
  };
}

/** Connections for one signing request. */
export function openSigningApi(access: Access, userAgent: string, deps: KubeDeps): SigningApi {
  const client = createApiClient({ ...deps, access, userAgent, qps: -1, burst: 0 });
  const startInformer = createInformerFactory({ ...deps, client });
  return { client, startInformer, [Symbol.asyncDispose]: () => client[Symbol.asyncDispose]() };
}

function ownAccess(
  { server }: ClientConfig,
  clientCertificate: () => { cert: Buffer; key: Buffer } | undefined,
  deps: KubeDeps,
): Access {
  if (!server.server.startsWith("https:")) {
    throw new AgentError("Invalid", `${server.origin}: a node with a client certificate needs an https server`);
  }
  return createAccess({ ...server, clientCertificate }, deps);
}
