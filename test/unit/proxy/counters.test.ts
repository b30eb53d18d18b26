import { expect, test } from "vitest";
import { AgentError } from "../../../agent/lib/errors.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import type { Commands } from "../../../agent/proxy/commands.ts";
import { countersAgeMsMax, PacketCounters } from "../../../agent/proxy/iptables/counters.ts";
import { createIptables } from "../../../agent/proxy/iptables/exec.ts";
import { localhostCountComment } from "../../../agent/proxy/iptables/fixed.ts";
import type { PacketCount } from "../../../agent/proxy/iptables/port.ts";
import { ended } from "../../support/fake-commands.ts";
import { FakeClock } from "../kube/fake-clock.ts";

const signal = new AbortController().signal;

function countersOf(answer: (chain: string) => PacketCount[]) {
  const clock = new FakeClock();
  let asked = 0;
  const listPackets = async (_table: string, chain: string) => {
    asked += 1;
    return answer(chain);
  };
  return {
    clock,
    asked: () => asked,
    counters: new PacketCounters({ iptables: { listPackets }, clock, log: silentLogger }),
  };
}

const rules = (packets: number): Record<string, PacketCount[]> => ({
  "KUBE-FORWARD": [
    { rule: "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP", packets },
    { rule: "-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", packets: 99 },
  ],
  "KUBE-POSTROUTING": [{ rule: `-A KUBE-POSTROUTING -m comment --comment "${localhostCountComment}"`, packets: 2 }],
});

test("scrapes within a few seconds share one reading", async () => {
  let packets = 1;
  const { counters, clock, asked } = countersOf((chain) => rules(packets)[chain] ?? []);
  const both = await Promise.all([counters.read(signal), counters.read(signal)]);
  expect(both).toEqual(Array.from({ length: 2 }, () => ({ invalidDropped: 1, localhostNodePorts: 2 })));
  expect(asked()).toBe(2);
  packets = 5;
  await clock.advance(countersAgeMsMax);
  expect(await counters.read(signal)).toEqual({ invalidDropped: 5, localhostNodePorts: 2 });
});

test("what is not counted, or cannot be read, is absent", async () => {
  expect(await countersOf(() => []).counters.read(signal)).toEqual({});
  const failing = countersOf(() => {
    throw new AgentError("Unavailable", "the lock is held");
  });
  expect(await failing.counters.read(signal)).toEqual({});
});

test("counters are taken out of the rules that the command prints", async () => {
  const lines = [
    "-N KUBE-FORWARD",
    "-A KUBE-FORWARD -m conntrack --ctstate INVALID -c 12 720 -j DROP",
    '-A KUBE-FORWARD -d 127.0.0.0/8 -m comment --comment "a -c 7 8 b" -c 3 180',
  ];
  const commands: Commands = {
    run: async () => ended(0, "iptables v1.8.9 (nf_tables)\n", ""),
    lines: async (_file, args, { onLine }) => {
      expect(args).toEqual(["-w", "5", "-t", "filter", "-v", "-S", "KUBE-FORWARD"]);
      for (const line of lines) onLine(line);
      return ended(0, "", "");
    },
  };
  const iptables = await createIptables(commands, "IPv4", "nft", signal);
  expect(await iptables.listPackets("filter", "KUBE-FORWARD", signal)).toEqual([
    { rule: "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP", packets: 12 },
    { rule: '-A KUBE-FORWARD -d 127.0.0.0/8 -m comment --comment "a -c 7 8 b"', packets: 3 },
  ]);
});

test("a table that cannot be had is told in the command's own words", async () => {
  const said = "can't initialize iptables table `nat': Table does not exist (do you need to insmod?)";
  const commands: Commands = {
    run: async () => ended(0, "iptables v1.8.9 (legacy)\n", ""),
    lines: async () => ({ ...ended(3, "", said), message: `iptables exited with 3: ${said}` }),
  };
  const iptables = await createIptables(commands, "IPv4", "legacy", signal);
  await expect(iptables.expectTable("nat", signal)).rejects.toThrow(said);
});
