import { spawn } from "node:child_process";
import { once } from "node:events";
import { readdir } from "node:fs/promises";
import { expect, test } from "vitest";
import { TestNet } from "../support/test-net.ts";

const script = `
  const { TestNet } = await import(${JSON.stringify(new URL("../support/test-net.ts", import.meta.url).href)});
  process.stdout.write((await TestNet.create()).prefix);
  setInterval(() => {}, 1_000);
`;

test("the next network removes the namespaces of a test that was killed, and no others", async () => {
  const child = spawn(process.execPath, ["--input-type=module", "-e", script], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const [prefix] = (await once(child.stdout, "data")) as [Buffer];
  const left = async () => (await readdir("/run/netns")).filter((name) => name.startsWith(prefix.toString()));
  await using first = await TestNet.create();
  expect(await left()).toHaveLength(5);
  const ended = once(child, "exit");
  child.kill("SIGKILL");
  await ended;
  await using second = await TestNet.create();
  expect(await left()).toEqual([]);
  for (const net of [first, second]) expect(await net.onNode("ip", ["link"])).toContain("veth-pod1");
});
