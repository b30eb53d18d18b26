/**
 * A proxy in nftables mode in a process of its own, with an IPC channel: for what it does in its own network namespace, such as
 * listening. A message is the Services and EndpointSlices that there are from then on; the answer comes when they are in place.
 */
import type { EndpointSlice, Node, Service } from "../../agent/kube/types.ts";
import { systemClock } from "../../agent/lib/clock.ts";
import { silentLogger } from "../../agent/lib/log.ts";
import { keyOf } from "../../agent/kube/port.ts";
import { proxyOptionsDefault } from "../../agent/proxy/options.ts";
import { createProxy } from "../../agent/proxy/proxy.ts";
import { MemoryStore } from "./memory-store.ts";
import { until } from "./test-net.ts";

/** What a test sends. */
export interface ProxyObjects {
  readonly services: readonly Service[];
  readonly slices: readonly EndpointSlice[];
}

const services = new MemoryStore<Service>();
const endpointSlices = new MemoryStore<EndpointSlice>();
const stop = new AbortController();
const proxy = createProxy(
  {
    ...proxyOptionsDefault,
    mode: "nftables",
    nodeName: "n1",
    nodeIPs: ["192.0.2.1"],
    families: ["IPv4", "IPv6"],
    minSyncPeriodMs: 10,
    syncPeriodMs: 500,
    // The machine's limits are nobody's business here.
    conntrack: {
      ...proxyOptionsDefault.conntrack,
      maxPerCore: 0,
      tcpEstablishedTimeoutSeconds: 0,
      tcpCloseWaitTimeoutSeconds: 0,
    },
    detectLocal: { ...proxyOptionsDefault.detectLocal, cidrs: ["10.244.0.0/16", "fd00:244::/32"] },
  },
  {
    services,
    endpointSlices,
    nodes: new MemoryStore<Node>().markSynced(),
    clock: systemClock,
    log: silentLogger,
  },
);
const done = proxy.run(stop.signal);

async function take(objects: ProxyObjects): Promise<void> {
  for (const service of [...services.list()]) services.remove(keyOf(service.metadata));
  for (const slice of [...endpointSlices.list()]) endpointSlices.remove(keyOf(slice.metadata));
  services.put(...objects.services);
  endpointSlices.put(...objects.slices);
  services.markSynced();
  endpointSlices.markSynced();
  await until("the proxy has settled", async () => {
    const stats = proxy.stats();
    return stats.length === 2 && stats.every((one) => one.syncs > 0 && one.pendingSinceMs === undefined);
  });
}

process.on("message", (objects: ProxyObjects) => {
  take(objects).then(
    () => process.send?.("settled"),
    (err: unknown) => process.send?.(String(err)),
  );
});
process.on("disconnect", () => {
  stop.abort();
  void done.finally(() => process.exit(0));
});
process.send?.("ready");
