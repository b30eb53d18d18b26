import { FakeClock } from "../kube/fake-clock.ts";
import type { Endpoint } from "../../../agent/kube/types.ts";
import { createLogger } from "../../../agent/lib/log.ts";
import type { ClientSets } from "../../../agent/proxy/iptables/affinity.ts";
import type { FixedContext } from "../../../agent/proxy/iptables/fixed.ts";
import { IptablesBackend } from "../../../agent/proxy/iptables/sync.ts";
import { ServiceModel } from "../../../agent/proxy/model.ts";
import { FakeIptables, FakeIpset } from "../../support/fake-iptables.ts";
import { makeService, makeSlice } from "../../support/service-objects.ts";

const signal = new AbortController().signal;

/** A backend, the tables it writes, and the model it reads. */
export class Bench {
  readonly iptables: FakeIptables;
  readonly set: FakeIpset | undefined;
  readonly model = new ServiceModel("IPv4", { name: "n1", zone: undefined, ips: [] });
  fixed: Omit<FixedContext, "sets" | "masqueradedClients"> = {
    family: "IPv4",
    mark: "0x004000",
    nodePortIPs: undefined,
    hasLocalhostNodePorts: true,
    dropsInvalid: true,
    hasRandomFully: true,
  };
  backend: IptablesBackend;

  readonly clock = new FakeClock();
  readonly refused: string[] = [];
  /** What was logged. */
  readonly lines: string[] = [];

  constructor(iptables = new FakeIptables(), set: FakeIpset | "none" = new FakeIpset(), clientSets?: ClientSets) {
    this.iptables = iptables;
    this.set = set === "none" ? undefined : set;
    this.backend = new IptablesBackend({
      iptables,
      ipset: this.set,
      clientSets,
      clock: this.clock,
      log: createLogger({ level: "info", stream: { write: (line) => void this.lines.push(line) } }),
      onRefused: (key, reason) => void this.refused.push(`${key}: ${reason}`),
    });
  }

  put(
    name: string,
    ip: string,
    endpoints: readonly (string | (Partial<Endpoint> & { address: string }))[],
    spec: object = {},
  ): void {
    this.model.setService(`ns1/${name}`, makeService(name, { clusterIP: ip, ...spec }));
    this.model.setSlice(`ns1/${name}-a`, makeSlice(name, endpoints));
  }

  async sync(isFull = this.backend.needsFull): Promise<string> {
    const before = this.iptables.texts.length;
    const pending = this.model.pending();
    await this.backend.sync(
      {
        isFull,
        keys: isFull ? this.model.keys() : [...pending.keys].sort(),
        describe: (key) => this.model.describe(key),
        endpointCount: () => this.model.endpointCount(),
        fixed: this.fixed,
        render: {
          family: "IPv4",
          masqueradeAll: false,
          localPods: { match: "-s 10.244.0.0/16", notMatch: "! -s 10.244.0.0/16" },
        },
      },
      signal,
    );
    this.model.settle(pending);
    return this.iptables.texts.slice(before).join("");
  }

  /** The tables that a start from nothing makes of the same model. */
  async fresh(): Promise<{ dump: string; sets: string }> {
    const other = new Bench();
    other.fixed = this.fixed;
    Object.assign(other, { model: this.model });
    await other.sync(true);
    return { dump: other.iptables.dump(), sets: other.set?.dump() ?? "" };
  }
}
