import type { EndpointSlice, Node, Service, ServiceCIDR } from "../../agent/kube/types.ts";
import { systemClock } from "../../agent/lib/clock.ts";
import { silentLogger } from "../../agent/lib/log.ts";
import { type ProxyOptions, proxyOptionsDefault } from "../../agent/proxy/options.ts";
import { createProxy, type Proxy } from "../../agent/proxy/proxy.ts";
import { MemoryStore } from "./memory-store.ts";
import { type TestNet, until } from "./test-net.ts";

/** A proxy at work on the test network's node. */
export class RunningProxy {
  readonly services = new MemoryStore<Service>();
  readonly endpointSlices = new MemoryStore<EndpointSlice>();
  readonly serviceCIDRs = new MemoryStore<ServiceCIDR>().markSynced();
  readonly nodes = new MemoryStore<Node>().markSynced();
  readonly proxy: Proxy;
  readonly #stop = new AbortController();
  readonly #done: Promise<void>;

  constructor(net: TestNet, options: Partial<ProxyOptions>) {
    this.proxy = createProxy(
      {
        ...proxyOptionsDefault,
        nodeName: "n1",
        nodeIPs: ["192.0.2.1"],
        families: ["IPv4", "IPv6"],
        minSyncPeriodMs: 10,
        syncPeriodMs: 500,
        // The relay would listen on the loopback of this process, not on the node's.
        localhostNodePorts: options.mode !== "nftables",
        detectLocal: { ...proxyOptionsDefault.detectLocal, cidrs: ["10.244.0.0/16", "fd00:244::/32"] },
        ...options,
      },
      {
        services: this.services,
        endpointSlices: this.endpointSlices,
        nodes: this.nodes,
        serviceCIDRs: this.serviceCIDRs,
        clock: systemClock,
        log: silentLogger,
        commands: net.commands,
        sysctls: net.sysctls,
        localIPs: () => net.localIPs,
      },
    );
    this.#done = this.proxy.run(this.#stop.signal);
  }

  markSynced(): this {
    this.services.markSynced();
    this.endpointSlices.markSynced();
    return this;
  }

  /** Resolves when all that was put in so far is in the kernel. */
  async settled(): Promise<void> {
    await until("the proxy has settled", async () => {
      const stats = this.proxy.stats();
      return stats.length === 2 && stats.every((one) => one.syncs > 0 && one.pendingSinceMs === undefined);
    });
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#done;
  }
}
