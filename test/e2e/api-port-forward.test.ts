import { once } from "node:events";
import { connect } from "node:net";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { isReady, openNamespace, type TestNamespace } from "./support/cluster.ts";
import { type Kubectl, openKubectl, protocols, type Running } from "./support/kubectl.ts";
import { podOf, shell, webOf } from "./support/pods.ts";

const MiB = 1 << 20;
let cluster: TestNamespace;
let kubectl: Kubectl;

beforeAll(async () => {
  cluster = await openNamespace(inject("kubeconfig"));
  kubectl = openKubectl(inject("kubeconfig"), cluster.namespace);
  await cluster.createPod(webOf("web", {}));
  const large = `mkdir /tmp/www; head -c ${20 * MiB} /dev/zero > /tmp/www/large; httpd -f -p 8081 -h /tmp/www`;
  // Echoes one connection after the other, each until its client closes its side.
  const echo = "while true; do nc -l -p 7777 -e cat; done";
  await cluster.createPod(podOf("other", [shell("large", large), shell("echo", echo)]));
  for (const name of ["web", "other"]) await cluster.waitForPod(name, "ready", isReady);
});
afterAll(() => cluster[Symbol.asyncDispose]());

/** Forwards ports of a pod; `ports` are the local ones. */
async function forward(pod: string, targets: number[], env: Record<string, string>) {
  const running = kubectl.start(["port-forward", `pod/${pod}`, ...targets.map((port) => `:${port}`)], { env });
  const ports: number[] = [];
  for (const target of targets) {
    const line = new RegExp(`Forwarding from 127\\.0\\.0\\.1:(\\d+) -> ${target}\\b`);
    await running.said(line);
    ports.push(Number(line.exec(running.stdout())?.[1]));
  }
  const end = async () => {
    running.kill();
    await running.ended;
  };
  return { ports, running, [Symbol.asyncDispose]: end } satisfies AsyncDisposable & {
    running: Running;
    ports: number[];
  };
}

const get = async (port: number, path = "/") => {
  const headers = { connection: "close" };
  return await fetch(`http://127.0.0.1:${port}${path}`, { headers, signal: AbortSignal.timeout(30_000) });
};

describe.each(protocols)("over $protocol, kubectl port-forward", ({ env }) => {
  test("carries one connection after the other, and many at once", async () => {
    await using web = await forward("web", [8080], env);
    const [port = 0] = web.ports;
    for (let i = 0; i < 3; i++) expect(await (await get(port)).text()).toBe("web\n");
    const answers = await Promise.all(Array.from({ length: 30 }, async () => await (await get(port)).text()));
    expect(new Set(answers)).toEqual(new Set(["web\n"]));
  });

  test("carries two ports of one pod, and 20 MiB whole", async () => {
    await using other = await forward("other", [8081, 7777], env);
    const [port = 0, echoPort = 0] = other.ports;
    const body = await (await get(port, "/large")).arrayBuffer();
    expect(body.byteLength).toBe(20 * MiB);
    const socket = connect(echoPort, "127.0.0.1");
    socket.write("echo this");
    const [chunk] = (await once(socket, "data")) as [Buffer];
    expect(chunk.toString()).toBe("echo this");
    socket.destroy();
  });

  test("closes a connection to a port that nobody listens on, says why, and goes on with others", async () => {
    await using web = await forward("web", [9999, 8080], env);
    const [closed = 0, port = 0] = web.ports;
    await expect(get(closed)).rejects.toThrow();
    await web.running.said(/connection refused/i);
    // kubectl itself ends with its first lost connection since 1.23; the agent must not have cut the others.
    const answer = await get(port).then(
      async (response) => await response.text(),
      () => "kubectl has ended",
    );
    expect(["web\n", "kubectl has ended"]).toContain(answer);
  });
});

test("a pod that is not there, and one that is not running", async () => {
  const gone = await kubectl.run(["port-forward", "pod/nobody", ":80"]);
  expect(gone.code).toBe(1);
  expect(gone.stderr).toContain('pods "nobody" not found');
  await cluster.createPod(podOf("ended", "true", { restartPolicy: "Never" }));
  await cluster.waitForPod("ended", "finished", ({ status }) => status?.phase === "Succeeded");
  const ended = await kubectl.run(["port-forward", "pod/ended", ":80"]);
  expect(ended.code).toBe(1);
  expect(ended.stderr).toContain("pod is not running");
});
