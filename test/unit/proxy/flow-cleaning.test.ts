import { expect, test } from "vitest";
import { silentLogger } from "../../../agent/lib/log.ts";
import type { Commands } from "../../../agent/proxy/commands.ts";
import { FlowCleaning } from "../../../agent/proxy/flow-cleaning.ts";
import type { ServiceDescription } from "../../../agent/proxy/model.ts";
import { parseIP } from "../../../agent/proxy/ip.ts";
import { ServiceModel } from "../../../agent/proxy/model.ts";
import { ended } from "../../support/fake-commands.ts";
import { makeService, makeSlice } from "../../support/service-objects.ts";
import { FakeClock, settle } from "../kube/fake-clock.ts";

const flow =
  "udp      17 29 src=192.0.2.9 dst=10.96.0.10 sport=5556 dport=80 src=10.244.1.5 dst=192.0.2.9 sport=8080 dport=5556";

function describeWeb(isThere: boolean): ServiceDescription {
  const model = new ServiceModel("IPv4", { name: "n1", zone: undefined, ips: [parseIP("192.0.2.1")!] });
  if (isThere) {
    const port = { name: "u80", port: 80, protocol: "UDP" as const };
    model.setService("ns1/web", makeService("web", { ports: [port] }));
    model.setSlice("ns1/web-a", makeSlice("web", ["10.244.1.5"], { ports: [{ ...port, port: 8080 }] }));
  }
  return model.describe("ns1/web");
}

function cleaningBy(commands: Commands): FlowCleaning {
  return new FlowCleaning({
    family: "IPv4",
    commands,
    clock: new FakeClock(),
    log: silentLogger,
    localIPs: () => [],
    onCleaned: () => {},
    retryMsMax: 30_000,
  });
}

test.each([
  ["while it is looked at for the first time", true],
  ["before anybody has looked at it", false],
])("flows go of a service that is deleted %s", async (_, isLooking) => {
  const removed: string[] = [];
  let looks = 0;
  const { promise: firstLook, resolve: answer } = Promise.withResolvers<void>();
  const commands: Commands = {
    run: async (_file, args) => {
      removed.push(args.join(" "));
      return ended(0, "", "");
    },
    lines: async (_file, _args, { onLine }) => {
      looks += 1;
      if (looks === 1 && isLooking) await firstLook;
      onLine(flow);
      return ended(0, "", "");
    },
  };
  const cleaning = cleaningBy(commands);
  const sync = (isThere: boolean) => {
    cleaning.reset();
    cleaning.note(describeWeb(isThere));
    cleaning.settle();
  };
  const stop = new AbortController();
  sync(true);
  const done = isLooking ? cleaning.run(stop.signal) : undefined;
  await settle();
  sync(false);
  answer();
  const running = done ?? cleaning.run(stop.signal);
  await settle();
  expect(removed).toEqual([expect.stringContaining("--reply-src 10.244.1.5")]);
  stop.abort();
  await running;
});

test.each([
  ["is in the kernel", true],
  ["is about to be programmed", false],
])("flows to an endpoint stay that came back during the look and %s", async (_, isProgrammed) => {
  const removed: string[] = [];
  let looks = 0;
  const { promise: secondLook, resolve: answer } = Promise.withResolvers<void>();
  const commands: Commands = {
    run: async (_file, args) => {
      removed.push(args.join(" "));
      return ended(0, "", "");
    },
    lines: async (_file, _args, { onLine }) => {
      looks += 1;
      if (looks === 2) await secondLook;
      if (looks > 1) onLine(flow);
      return ended(0, "", "");
    },
  };
  const cleaning = cleaningBy(commands);
  const begin = (isThere: boolean) => {
    cleaning.reset();
    cleaning.note(describeWeb(isThere));
  };
  const stop = new AbortController();
  const running = cleaning.run(stop.signal);
  for (const isThere of [true, false]) {
    begin(isThere);
    cleaning.settle();
    await settle();
  }
  expect(looks).toBe(2);
  begin(true);
  if (isProgrammed) cleaning.settle();
  answer();
  await settle();
  expect(removed).toEqual([]);
  stop.abort();
  await running;
});
