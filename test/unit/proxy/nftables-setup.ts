import type { EndpointSlice, Service } from "../../../agent/kube/types.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import type { Family } from "../../../agent/proxy/ip.ts";
import { parseIP } from "../../../agent/proxy/ip.ts";
import { ServiceModel } from "../../../agent/proxy/model.ts";
import { NftablesRules, type NftablesSyncRequest } from "../../../agent/proxy/nftables/sync.ts";
import { FakeNft } from "../../support/fake-nft.ts";
import { FakeClock } from "../volumes/support.ts";

const signal = new AbortController().signal;

/** A model and the table that is kept after it. */
export class Setup {
  readonly model: ServiceModel;
  readonly nft: FakeNft;
  readonly clock = new FakeClock();
  rules: NftablesRules;
  context: Pick<NftablesSyncRequest, "fixed" | "render">;

  constructor(family: Family = "IPv4", nft = new FakeNft()) {
    this.nft = nft;
    this.model = new ServiceModel(family, { name: "n1", zone: undefined, ips: [parseIP("192.0.2.1")!] });
    this.rules = this.newRules();
    const mark = "0x004000";
    this.context = {
      fixed: {
        family,
        mark,
        masqueradeAll: false,
        notFromLocalPods: "ip saddr != 10.244.0.0/16",
        nodePortIPs: ["192.0.2.1"],
        serviceCIDRs: [],
      },
      render: { family, mark, fromLocalPods: "ip saddr 10.244.0.0/16" },
    };
  }

  newRules(): NftablesRules {
    return new NftablesRules({ nft: this.nft, clock: this.clock, log: silentLogger });
  }

  put(service: Service, ...slices: EndpointSlice[]): void {
    this.model.setService(`ns1/${service.metadata.name}`, service);
    for (const slice of slices) this.model.setSlice(`ns1/${slice.metadata.name}`, slice);
  }

  async sync(isFull = this.rules.needsFull) {
    const pending = this.model.pending();
    const result = await this.rules.sync(
      {
        isFull,
        keys: isFull ? this.model.keys() : [...pending.keys].sort(),
        describe: (key) => this.model.describe(key),
        endpointCount: () => this.model.endpointCount(),
        ...this.context,
      },
      signal,
    );
    this.model.settle(pending);
    return result;
  }
}
