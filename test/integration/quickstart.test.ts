import { spawn } from "node:child_process";
import { access, readdir, readFile, readlink } from "node:fs/promises";
import { dirname, join } from "node:path";
import { expect, test } from "vitest";
import { projectRoot } from "../support/cluster/local-cluster.ts";
import { mountsBelow } from "../support/node/leftovers.ts";

const script = join(projectRoot, "test/support/quickstart/main.ts");

/** Starts the quickstart; `said` resolves once its output contains a text. */
function start(...args: string[]) {
  const child = spawn(process.execPath, [script, ...args], { stdio: ["ignore", "pipe", "pipe"] });
  let output = "";
  const listeners = new Set<() => void>();
  const onData = (chunk: Buffer) => {
    output += chunk.toString();
    for (const listener of listeners) listener();
  };
  child.stdout.on("data", onData);
  child.stderr.on("data", onData);
  const ended = new Promise<number | null>((resolve) => {
    child.once("exit", resolve);
  });
  return {
    child,
    ended,
    output: () => output,
    said: async (text: string) => {
      const { promise, resolve } = Promise.withResolvers<void>();
      const look = () => {
        if (output.includes(text)) resolve();
      };
      listeners.add(look);
      look();
      await Promise.race([promise, ended]);
      expect(output).toContain(text);
    },
  };
}

/** What of a test node's directory is still in use somewhere on the machine. */
async function leftOf(dir: string): Promise<string[]> {
  const linksDir = "/var/log/containers";
  const links = await Promise.all(
    (await readdir(linksDir).catch(() => [])).map(async (name) => {
      return await readlink(join(linksDir, name)).catch(() => "");
    }),
  );
  const commands = await Promise.all(
    (await readdir("/proc"))
      .filter((name) => /^\d+$/.test(name))
      .map(async (pid) => {
        return await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "");
      }),
  );
  const isThere = await access(dir).then(
    () => true,
    () => false,
  );
  return [
    ...(isThere ? [dir] : []),
    ...(await mountsBelow(dir)),
    ...commands.filter((command) => command.includes(`${dir}/`)),
    ...links.filter((target) => target.startsWith(`${dir}/`)), // those of other clusters on the machine are theirs
  ];
}

test("unattended, it shows that both replicas answer, and ends well", async () => {
  const quickstart = start("--check");
  const code = await quickstart.ended;
  expect(quickstart.output()).toMatch(/ClusterIP, from the node: \S+ answered by web-1 \d+×, web-2 \d+×/);
  expect(quickstart.output()).toMatch(/NodePort, from outside the node: \S+ answered by web-1 \d+×, web-2 \d+×/);
  expect(quickstart.output()).toContain("as kubectl logs client shows: both replicas answered");
  expect(quickstart.output()).toContain("kubectl exec web-1 -- hostname: web-1");
  expect(code).toBe(0);
}, 120_000);

test("Ctrl-C ends it and leaves nothing behind", async () => {
  const quickstart = start();
  try {
    await quickstart.said("Ctrl-C here ends the cluster");
  } finally {
    quickstart.child.kill("SIGINT");
  }
  expect(await quickstart.ended).toBe(0);
  const kubeconfig = /export KUBECONFIG=(\S+)/.exec(quickstart.output())?.[1] ?? "";
  expect(kubeconfig).toMatch(/admin\.kubeconfig$/);
  expect(await leftOf(dirname(dirname(kubeconfig)))).toEqual([]);
}, 120_000);

test("Ctrl-C in the middle of the start leaves nothing behind either", async () => {
  const quickstart = start();
  await quickstart.said("starting nodelet");
  quickstart.child.kill("SIGINT");
  expect(await quickstart.ended).toBe(0);
  expect(quickstart.output()).not.toContain("did not work");
}, 60_000);
