import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { createServer, type ServerResponse } from "node:http";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import type { Pod } from "../../agent/kube/types.ts";
import { messageOf } from "../../agent/lib/errors.ts";
import { projectRoot } from "../support/cluster/local-cluster.ts";
import { customImage } from "../support/images/images.ts";
import type { Image } from "../support/images/oci.ts";
import { isReady, until } from "./support/cluster.ts";
import { type BreakableCluster, identityOf, openBreakableCluster } from "./support/local.ts";
import { podOf, shell, sleeperOf } from "./support/pods.ts";

// What takes its time with Docker, whatever the other files run with: whom it holds up, and what people are told.

// People ask again after some seconds.
const explainedWithinMs = 20_000;

const nodelet = process.env["NODELET"] ?? join(projectRoot, "dist/nodelet");

describe.skipIf(!inject("isLocal"))("with Docker", () => {
  let env: BreakableCluster;

  beforeAll(async () => {
    // A sandbox may take twice this.
    env = await openBreakableCluster({ runtimeRequestTimeout: "2s" }, [], { runtime: "docker" });
  });
  afterAll(() => env?.[Symbol.asyncDispose]());

  const explain = async (name: string): Promise<string> => {
    const args = ["explain", "pod", `${env.cluster.namespace}/${name}`, "--root-dir", env.local.rootDir];
    // In one line: how it is broken depends on the terminal.
    return (await promisify(execFile)(nodelet, args)).stdout.replaceAll(/\s+/g, " ");
  };
  const untilExplained = async (name: string, words: RegExp) => {
    let said = "";
    const isSaid = async () => words.test((said = await explain(name)));
    await until(`${name} explained by ${words}`, isSaid, explainedWithinMs).catch((err: unknown) => {
      throw new Error(`${messageOf(err)}; it said: ${said}`, { cause: err });
    });
  };

  test("a CNI plugin that hangs for one pod holds up no other; that one tells why, and starts when the plugin works", async () => {
    const { cluster, local } = env;
    await cluster.createPod(sleeperOf("steady"));
    const before = await cluster.waitForPod("steady", "ready", isReady);
    const bridge = join(local.docker?.cni.binDirs[0] ?? "", "bridge");
    const good = await readFile(bridge, "utf8");
    const hangs = 'case "$CNI_COMMAND $CNI_ARGS" in "ADD "*K8S_POD_NAME=held*) exec sleep 4322;; esac';
    await writeFile(bridge, good.replace("exec ", `${hangs}\nexec `));
    try {
      await cluster.createPod(sleeperOf("held"));
      await untilExplained(
        "held",
        /sandbox: the runtime makes the pod's sandbox and its network \(set up its network\) for/,
      );
      await cluster.createPod(sleeperOf("beside"));
      await cluster.createPod(sleeperOf("beside-host", { hostNetwork: true }));
      for (const name of ["beside", "beside-host"]) await cluster.waitForPod(name, "ready", isReady);
      const event = await until("the pod tells why", async () =>
        (await cluster.eventsOf("held")).find(({ reason }) => reason === "FailedCreatePodSandBox"),
      );
      expect(event.type).toBe("Warning");
      expect(event.message).toMatch(/held: not done within 4 s; it came to: set up its network/);
      await untilExplained("held", /not done within 4 s; it came to: set up its network/);
      const held = await cluster.getPod("held");
      expect(held.status?.phase).toBe("Pending");
      const conditionOf = ({ status }: Pod) =>
        status?.conditions?.find(({ type }) => type === "PodReadyToStartContainers")?.status;
      expect(conditionOf(held)).toBe("False");
    } finally {
      await writeFile(bridge, good);
    }
    const after = await cluster.waitForPod("held", "ready", isReady);
    expect(after.status?.podIP).toMatch(/\d/);
    expect(identityOf(await cluster.getPod("steady"))).toEqual(identityOf(before));
    const names = ["steady", "held", "beside", "beside-host"];
    for (const name of names) await cluster.deletePod(name);
    for (const name of names) await cluster.waitForPodGone(name);
    await until("no sandbox, container or address left", async () => {
      const { sandboxes, containers } = await env.list();
      return [...sandboxes, ...containers, ...(await local.runtime.networks())].length === 0;
    });
    const { stdout } = await local.node.exec("sh", ["-c", "pgrep -f '^sleep 4322$' || true"]);
    expect(stdout).toBe("");
  });

  test("a pull that takes its time tells how far it is", async () => {
    const { cluster, local } = env;
    await using registry = await startSlowRegistry(local.node.network.hostIP);
    // Without it the daemon would have all there is of the image already.
    const filler = { kind: "file", path: "filler", content: randomBytes(4 << 20) } as const;
    const image = await customImage({ name: `${registry.address}/slow/app:1`, files: [filler] });
    registry.serve(image);
    await cluster.createPod(podOf("slow", [shell("main", "sleep 600", { image: image.name })]));
    const half = /container main: Pulling image "\S+\/slow\/app:1": 0 of 2 layers done, \d\.\d of 6\.\d MB downloaded/;
    await untilExplained("slow", half);
    registry.release();
    await cluster.waitForPod("slow", "ready", isReady);
    // The whole of it is no event.
    const reasons = (await cluster.eventsOf("slow")).map(({ reason }) => reason);
    expect(reasons.filter((reason) => reason === "Pulling")).toHaveLength(1);
    await cluster.deletePod("slow");
    await cluster.waitForPodGone("slow");
  });
});

/** A registry with one image, whose layers it gives in halves: the second when it is released. */
async function startSlowRegistry(host: string) {
  const waiting: (() => void)[] = [];
  let image: Image | undefined;
  let isReleased = false;
  const server = createServer((request, response) => {
    const [, kind, digest] = /\/(manifests|blobs)\/([^/]+)$/.exec(request.url ?? "") ?? [];
    if (kind === undefined || image === undefined) return void response.end("{}");
    if (kind === "manifests") return send(response, image.manifest, image.manifest.mediaType);
    if (image.config.digest === digest) return send(response, image.config);
    const layer = image.layers.find((one) => one.digest === digest);
    if (layer === undefined) return void response.writeHead(404).end();
    const middle = layer.bytes.length >> 1;
    response.writeHead(200, { "content-length": layer.bytes.length });
    response.write(layer.bytes.subarray(0, middle));
    const rest = () => void response.end(layer.bytes.subarray(middle));
    if (isReleased) rest();
    else waiting.push(rest);
  });
  await new Promise<void>((resolve) => server.listen(0, host, resolve));
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("the registry has no address");
  return {
    address: `${host}:${address.port}`,
    serve: (one: Image) => void (image = one),
    release: () => {
      isReleased = true;
      for (const rest of waiting.splice(0)) rest();
    },
    [Symbol.asyncDispose]: async () => {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

function send(response: ServerResponse, { digest, bytes }: { digest: string; bytes: Uint8Array }, type = ""): void {
  const headers = { "content-length": bytes.length, "docker-content-digest": digest };
  response.writeHead(200, type === "" ? headers : { ...headers, "content-type": type }).end(bytes);
}
