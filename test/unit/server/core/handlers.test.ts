import { mkdtemp, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { gunzip } from "node:zlib";
import { describe, expect, test } from "vitest";
import { AgentError } from "../../../../agent/lib/errors.ts";
import { systemClock } from "../../../../agent/lib/clock.ts";
import type { Pod } from "../../../../agent/kube/types.ts";
import type { Runtime, RuntimeList } from "../../../../agent/runtime/port.ts";
import { kubeletFlagValues } from "../../../../agent/server/flag-values.ts";
import { createCheckpointHandler } from "../../../../agent/server/handlers/checkpoint.ts";
import { createConfigzHandler } from "../../../../agent/server/handlers/configz.ts";
import { createHealthHandlers } from "../../../../agent/server/handlers/healthz.ts";
import { createPodsHandler, createRunningPodsHandler } from "../../../../agent/server/handlers/pods.ts";
import { encodePprof } from "../../../../agent/server/handlers/pprof-encode.ts";
import { createPprofHandler } from "../../../../agent/server/handlers/pprof.ts";
import { createVerbosityHandler } from "../../../../agent/server/handlers/verbosity.ts";
import { createFlagzHandler, createStatuszHandler } from "../../../../agent/server/handlers/z-pages.ts";
import type { ServedPods } from "../../../../agent/server/port.ts";
import type { KubeletHandlers } from "../../../../agent/server/routes.ts";
import { kubeletWith } from "../../config/support.ts";
import { FakeClock } from "../../kube/fake-clock.ts";
import { ask, namingHandlers, RawClient, startServer, until } from "./support.ts";

const serve = (handlers: Partial<KubeletHandlers>) => startServer({ handlers: { ...namingHandlers(), ...handlers } });

const pod = (name: string, more: Partial<Pod> & { source?: string } = {}): Pod => {
  const { source, ...rest } = more;
  const annotations = source === undefined ? {} : { annotations: { "kubernetes.io/config.source": source } };
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name, namespace: "ns", uid: `uid-${name}`, ...annotations },
    spec: { containers: [{ name: "app", image: "img" }] },
    ...rest,
  };
};

const served = (pods: Pod[]): ServedPods => ({
  list: () => pods,
  find: (namespace, name) => pods.find(({ metadata: m }) => m.name === name && m.namespace === namespace),
  status: () => ({ phase: "Running" }),
});

describe("/pods", () => {
  test("shows API pods as the API server knows them and static ones as the agent does", async () => {
    const pods = [pod("web", { status: { phase: "Pending" } }), pod("static", { source: "file" })];
    await using server = await serve({ pods: createPodsHandler(served(pods)) });
    const { status, headers, body } = await ask(server.ports.kubelet, "/pods");
    expect([status, headers["content-type"]]).toEqual([200, "application/json"]);
    expect(JSON.parse(body)).toMatchObject({
      kind: "PodList",
      apiVersion: "v1",
      metadata: {},
      items: [
        { metadata: { name: "web" }, status: { phase: "Pending" } },
        { metadata: { name: "static" }, status: { phase: "Running" } },
      ],
    });
    expect(body).not.toMatch(/"kind":"Pod"/);
  });

  test("no pods are null", async () => {
    await using server = await serve({ pods: createPodsHandler(served([])) });
    const { body } = await ask(server.ports.kubelet, "/pods");
    expect(body).toBe(`{"kind":"PodList","apiVersion":"v1","metadata":{},"items":null}\n`);
  });

  test("many large pods arrive whole; a client that does not read, or goes, is not waited for", async () => {
    const large = Array.from({ length: 300 }, (_, i) => pod(`p${i}`, { status: { message: "x".repeat(20_000) } }));
    await using server = await serve({ pods: createPodsHandler(served(large)) });
    const { body } = await ask(server.ports.kubelet, "/pods");
    expect((JSON.parse(body) as { items: unknown[] }).items).toHaveLength(300);
    const slow = await RawClient.tls(server.ports.kubelet);
    slow.socket.write("GET /pods HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer x\r\n\r\n");
    await slow.until(/PodList/);
    slow.socket.pause();
    expect(await ask(server.ports.kubelet, "/healthz")).toMatchObject({ status: 200 });
    slow.socket.destroy();
    await slow.closed;
  });
});

const running: RuntimeList = {
  sandboxes: [],
  containers: (["running", "exited", "running"] as const).map((state, i) => ({
    id: `c${i}`,
    sandboxID: "s",
    podUID: "uid-web",
    podName: "web",
    podNamespace: "ns",
    name: i === 1 ? "old" : "app",
    attempt: i,
    state,
    createdAtMs: i,
    image: `img${i}`,
    imageRef: "",
    labels: {},
    annotations: {},
  })),
};

test("/runningpods/ shows what the runtime runs", async () => {
  const runtime: Pick<Runtime, "list"> = { list: () => Promise.resolve(running) };
  await using server = await serve({ runningPods: createRunningPodsHandler(runtime) });
  const { body } = await ask(server.ports.kubelet, "/runningpods/");
  const { items } = JSON.parse(body) as { items: Pod[] };
  expect(items).toHaveLength(1);
  expect(items[0]).toMatchObject({
    metadata: { name: "web", namespace: "ns", uid: "uid-web" },
    spec: {
      containers: [
        { name: "app", image: "img0" },
        { name: "app", image: "img2" },
      ],
    },
  });
});

describe("/healthz", () => {
  const checks = [
    { name: "ping", check: async () => {} },
    { name: "syncloop", check: () => Promise.reject(new Error("stuck since noon")) },
  ];

  test("a failing check is named in the sum, and explained at its own path", async () => {
    const results: string[] = [];
    await using server = await serve(createHealthHandlers(checks, (name, ok) => void results.push(`${name} ${ok}`)));
    const { kubelet } = server.ports;
    expect(await ask(kubelet, "/healthz")).toMatchObject({
      status: 500,
      body: "[+]ping ok\n[-]syncloop failed: reason withheld\nhealthz check failed\n",
    });
    expect(results).toEqual(["ping true", "syncloop false"]);
    expect(await ask(kubelet, "/healthz/syncloop")).toMatchObject({
      status: 500,
      body: "internal server error: stuck since noon\n",
    });
    expect(await ask(kubelet, "/healthz/ping")).toMatchObject({ status: 200, body: "ok" });
    expect(await ask(kubelet, "/healthz/other")).toMatchObject({ status: 404 });
  });

  test("checks can be left out and listed", async () => {
    await using server = await serve(createHealthHandlers(checks));
    const { kubelet } = server.ports;
    expect(await ask(kubelet, "/healthz?exclude=syncloop")).toMatchObject({
      status: 200,
      body: "ok",
      headers: { "x-content-type-options": "nosniff", "content-type": "text/plain; charset=utf-8" },
    });
    expect(await ask(kubelet, "/healthz?verbose&exclude=syncloop&exclude=no%22ne")).toMatchObject({
      status: 200,
      body:
        "[+]ping ok\n[+]syncloop excluded: ok\n" +
        'warn: some health checks cannot be excluded: no matches for "no\\"ne"\nhealthz check passed\n',
    });
  });
});

test("/configz is JSON", async () => {
  await using server = await serve({ configz: createConfigzHandler(() => ({ kubeletconfig: { kind: "K" } })) });
  expect(await ask(server.ports.kubelet, "/configz")).toMatchObject({
    status: 200,
    body: '{"kubeletconfig":{"kind":"K"}}\n',
    headers: { "content-type": "application/json", "x-content-type-options": "nosniff" },
  });
});

test("/debug/flags/v takes a number and nothing else", async () => {
  const set: number[] = [];
  await using server = await serve({ verbosity: createVerbosityHandler((verbosity) => void set.push(verbosity)) });
  const put = async (body: string, method = "PUT") => {
    const { status, body: text } = await ask(server.ports.kubelet, "/debug/flags/v", { method, body });
    return `${status} ${text}`;
  };
  expect(await put("6")).toBe("200 successfully set klog.logging.verbosity to 6");
  expect(await put("six")).toMatch(/^400 .*"six"/);
  expect(await put("")).toMatch(/^400 /);
  expect(await put("1e3")).toMatch(/^400 /);
  expect(await put("6", "POST")).toBe("406 unsupported http method");
  expect(await put("6".repeat(70_000))).toMatch(/^413 /);
  expect(set).toEqual([6]);
});

describe("/checkpoint", () => {
  const start = async (checkpointContainer: Runtime["checkpointContainer"]) => {
    const rootDir = await mkdtemp(join(tmpdir(), "nodelet-checkpoint-"));
    const runtime = { list: () => Promise.resolve(running), checkpointContainer };
    const pods = served([pod("web", { spec: { containers: [{ name: "app" }, { name: "old" }] } })]);
    const server = await serve({
      checkpoint: createCheckpointHandler({ pods, runtime, rootDir, clock: new FakeClock() }),
    });
    const post = async (path: string) => {
      const { status, body } = await ask(server.ports.kubelet, `/checkpoint/${path}`, { method: "POST" });
      return `${status} ${body}`;
    };
    const close = async () => {
      await server.stop();
      await rm(rootDir, { recursive: true });
    };
    return { rootDir, post, [Symbol.asyncDispose]: close };
  };

  test("the newest running container goes into an archive that only root can reach", async () => {
    const calls: unknown[][] = [];
    await using t = await start((...call) => Promise.resolve(void calls.push(call)));
    const path = `${t.rootDir}/checkpoints/checkpoint-web_ns-app-2026-01-01T00:00:00Z.tar`;
    expect(await t.post("ns/web/app")).toBe(`200 {"items":["${path}"]}\n`);
    expect(await t.post("ns/web/app?timeout=5&timeout=300")).toMatch(/^200 /);
    expect(await t.post("ns/web/app?timeout=5")).toMatch(/^200 /);
    expect(calls.map(([id, , timeout]) => [id, timeout])).toEqual([
      ["c2", 0],
      ["c2", 300],
      ["c2", 120],
    ]);
    expect((await stat(join(t.rootDir, "checkpoints"))).mode & 0o777).toBe(0o700);
  });

  test("what is not there is 404, what fails 500", async () => {
    await using t = await start(() => Promise.reject(new AgentError("Unimplemented", "no CRIU here")));
    expect(await t.post("ns/none/app")).toBe("404 pod does not exist");
    expect(await t.post("ns/web/none")).toBe("404 container none does not exist");
    expect(await t.post("..%2f/web/none")).toMatch(/^404 /);
    expect(await t.post("ns/web/app?timeout=soon")).toMatch(/^404 /);
    expect(await t.post("ns/web/app?timeout=-1")).toMatch(/^500 /);
    expect(await t.post("ns/web/app")).toBe("500 checkpointing of ns/web/app failed (no CRIU here)");
    expect(await t.post("ns/web/old")).toMatch(/^500 .*old is not running/);
  });
});

describe("/statusz and /flagz", () => {
  const clock = new FakeClock();
  const statusz = createStatuszHandler({
    clock,
    startedAtMs: clock.now() - 3_725_000,
    version: "v1.36.2",
    paths: ["/metrics/cadvisor", "/configz", "/metrics"],
  });
  const flagz = createFlagzHandler(
    new Map([
      ["v", "2"],
      ["config", "/a"],
    ]),
  );
  const structured = (kind: string, version = "v1beta1", type = "json") =>
    `application/${type};as=${kind};v=${version};g=config.k8s.io`;

  test("are text for people", async () => {
    await using server = await serve({ statusz, flagz });
    for (const accept of ["", "*/*", "text/plain", "text/html, */*;q=0.8"]) {
      const { body } = await ask(server.ports.kubelet, "/statusz", { headers: { Accept: accept } });
      expect(body).toMatch(/^\nkubelet statusz\nWarning: .*\n\nStarted[:= ]/);
      expect(body).toMatch(/Up[:= ]+1 hr 02 min 05 sec\n/);
      expect(body).toMatch(/Paths[:= ]+\/configz \/metrics\n/);
    }
    expect((await ask(server.ports.kubelet, "/flagz")).body).toMatch(/\n\nconfig[:= ]+\/a\nv[:= ]+2\n$/);
  });

  test("are structured for who asks exactly for that", async () => {
    await using server = await serve({ statusz, flagz });
    const get = async (path: string, accept: string) =>
      ask(server.ports.kubelet, path, { headers: { Accept: accept } });
    const status = await get("/statusz", structured("Statusz"));
    expect(status.headers["content-type"]).toBe("application/json");
    expect(JSON.parse(status.body)).toMatchObject({
      kind: "Statusz",
      apiVersion: "config.k8s.io/v1beta1",
      metadata: { name: "kubelet" },
      uptimeSeconds: 3725,
      binaryVersion: "1.36.2",
      paths: ["/configz", "/metrics"],
    });
    const old = await get("/flagz", structured("Flagz", "v1alpha1"));
    expect(old.headers["warning"]).toMatch(/^299 /);
    expect(JSON.parse(old.body)).toMatchObject({ flags: { config: "/a", v: "2" } });
    const yaml = await get("/flagz", structured("Flagz", "v1beta1", "yaml"));
    expect(yaml.body).toMatch(/^kind: Flagz\n/);
    for (const accept of ["application/json", structured("Statusz"), structured("Flagz", "v9"), "image/png"]) {
      expect(await get("/flagz", accept)).toMatchObject({ status: 406 });
    }
  });

  test("flags show what is in use, but no secrets", () => {
    const { kubelet } = kubeletWith("maxPods: 42", ["--manifest-url-header=Authorization:secret", "--v=3"]);
    const values = kubeletFlagValues(kubelet);
    expect(values.get("max-pods")).toBe("42");
    expect(values.get("sync-frequency")).toBe("1m0s");
    expect(values.get("v")).toBe("3");
    expect(values.get("config")).toBe("/etc/k.yaml");
    expect(values.get("manifest-url-header")).toBe("CLASSIFIED");
    expect([...values.values()].join()).not.toMatch(/secret/);
  });
});

describe("/debug/pprof/", () => {
  test("profiles are what pprof reads, one at a time", { timeout: 20_000 }, async () => {
    await using server = await serve({ pprof: createPprofHandler({ clock: systemClock, args: ["nodelet", "-v=2"] }) });
    const get = async (path: string) => ask(server.ports.kubelet, `/debug/pprof/${path}`);
    const raw = await RawClient.tls(server.ports.kubelet);
    raw.socket.write("GET /debug/pprof/profile?seconds=200 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer x\r\n\r\n");
    await until(async () => (await get("heap?seconds=0.01")).status === 500);
    raw.socket.destroy();
    await until(async () => (await get("heap?seconds=0.01")).status === 200);
    expect(await get("profile?seconds=0.1")).toMatchObject({
      status: 200,
      headers: { "content-type": "application/octet-stream" },
    });
    for (const name of ["", "goroutine", "symbol", "block", "mutex", "threadcreate", "trace", "heap?debug=1"]) {
      expect(await get(name)).toMatchObject({ status: 200 });
    }
    expect((await get("cmdline")).body).toBe("nodelet\0-v=2");
    expect(await get("nothing")).toMatchObject({ status: 404 });
    expect(await get("toString")).toMatchObject({ status: 404 });
    expect(await get("allocs?seconds=0.01")).toMatchObject({ status: 200 });
  });

  test("the protobuf holds strings, functions and stacks", async () => {
    const outer = { functionName: "outer", url: "file:///a.ts", lineNumber: 9 };
    const inner = { functionName: "", url: "file:///a.ts", lineNumber: 300 };
    const packed = await encodePprof({
      kinds: [{ type: "cpu", unit: "nanoseconds" }],
      samples: [{ frames: [inner, outer], values: [1_000_000] }],
      period: 10,
      startedAtMs: 1,
      durationMs: 2,
    });
    const bytes = (await promisify(gunzip)(packed)).toString("hex");
    expect(bytes).toBe(
      [
        "0a0408011002", // sample_type: strings 1 and 2
        "12090a020102 1203c0843d", // sample: locations 1 and 2, a million
        "2209 0801 2205 0801 10ad02", // location 1: function 1, line 301
        "2208 0802 2204 0802 100a", // location 2: function 2, line 10
        "2a08 0801 1003 1803 2004", // function 1: strings 3, 3 and 4
        "2a08 0802 1005 1805 2004", // function 2: strings 5, 5 and 4
        "5a0408011002", // period_type
        "3200 3203" + Buffer.from("cpu").toString("hex"),
        "320b" + Buffer.from("nanoseconds").toString("hex"),
        "320b" + Buffer.from("(anonymous)").toString("hex"),
        "320c" + Buffer.from("file:///a.ts").toString("hex"),
        "3205" + Buffer.from("outer").toString("hex"),
        "48c0843d 5080897a 600a", // time, duration, period
      ]
        .join("")
        .replaceAll(" ", ""),
    );
  });
});
