import { isIP } from "node:net";
import type { MetricsRegistry } from "../../lib/metrics.ts";
import type { ApiClient, KubeDeps, StartInformer, Store } from "../port.ts";
import type { Node, NodeAddress } from "../types.ts";
import { clientTemplate } from "./client.ts";
import { CertificateManager } from "./manager.ts";
import { servingCertificateMetrics } from "./metrics.ts";
import { PemStore } from "./store.ts";
import type { CertificateTemplate } from "./x509.ts";

export interface ServingCertificateOptions {
  /** --cert-dir */
  certDir: string;
  nodeName: string;
  /** Holds the own Node: its addresses are the certificate's names. */
  nodeStore: Pick<Store<Node>, "get" | "subscribe">;
  /** The node's own way to the API server. */
  client: Pick<ApiClient, "create" | "get">;
  startInformer: StartInformer;
  /** Feature gate AllowDNSOnlyNodeCSR. */
  allowsDNSOnly: boolean;
  /** tlsCertFile and tlsPrivateKeyFile: served until the first certificate is issued. */
  configured?: { cert: string; key: string };
  metrics?: MetricsRegistry;
}

/**
 * A serving certificate that the API server's signer issues (`serverTLSBootstrap`): requested, replaced when an address of
 * the node changes, and renewed. Nothing approves such requests by itself in a plain cluster. Call `load`, then `run`.
 */
export function createServingCertificate(options: ServingCertificateOptions, deps: KubeDeps): CertificateManager {
  const { certDir, nodeName, nodeStore, client, startInformer, allowsDNSOnly, configured, metrics } = options;
  const addresses = () => nodeStore.get(nodeName)?.status?.addresses ?? [];
  const store = new PemStore({
    dir: certDir,
    prefix: "kubelet-server",
    log: deps.log,
    ...(configured === undefined ? {} : { configured }),
  });
  const manager: CertificateManager = new CertificateManager(
    {
      purpose: "serving",
      store,
      signerName: "kubernetes.io/kubelet-serving",
      usages: ["digital signature", "server auth"],
      template: () => servingTemplate(nodeName, addresses(), allowsDNSOnly),
      subscribeTemplate: (listener) =>
        nodeStore.subscribe(({ old, object }) => {
          // Heartbeats come every few seconds and change no address.
          const isSame = JSON.stringify(old?.status?.addresses) === JSON.stringify(object?.status?.addresses);
          if (!isSame) listener();
        }),
      openApi: () => ({ client, startInformer, [Symbol.asyncDispose]: async () => {} }),
      isEssential: false,
      ...(metrics === undefined ? {} : { observer: servingCertificateMetrics(metrics, () => manager, deps.clock) }),
    },
    deps,
  );
  return manager;
}

/**
 * What the serving certificate of a node with these addresses says; undefined while there is nothing to ask for, as signers
 * want an IP address. Pure; the order of addresses does not matter.
 */
export function servingTemplate(
  nodeName: string,
  addresses: readonly NodeAddress[],
  allowsDNSOnly: boolean,
): CertificateTemplate | undefined {
  const ips = new Set<string>();
  const dnsNames = new Set<string>();
  for (const { type, address } of addresses) {
    if (address === "") continue;
    if (isIP(address) !== 0) {
      if (type === "Hostname" || type === "InternalIP" || type === "ExternalIP") ips.add(address);
    } else if (type === "Hostname" || type === "InternalDNS" || type === "ExternalDNS") dnsNames.add(address);
  }
  if (ips.size === 0 && !(allowsDNSOnly && dnsNames.size > 0)) return undefined;
  return { ...clientTemplate(nodeName), dnsNames: [...dnsNames].sort(), ips: [...ips].sort() };
}
