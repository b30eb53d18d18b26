import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type MethodDefinition,
  Server,
  ServerCredentials,
  type ServerUnaryCall,
  type ServerWritableStream,
  type sendUnaryData,
  status,
} from "@grpc/grpc-js";
import { afterAll, beforeAll, expect, onTestFinished, test } from "vitest";
import { silentLogger } from "../../../agent/lib/log.ts";
import { connectCRI } from "../../../agent/runtime/cri/connect.ts";
import { loadProto } from "../../../agent/lib/grpc/proto.ts";
import type { RuntimeEvent } from "../../../agent/runtime/port.ts";
import { containerConfig, sandboxConfig } from "../../support/runtime/configs.ts";

let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "nodelet-cri-"));
});
afterAll(async () => {
  await rm(dir, { recursive: true, force: true });
});

type Unary = (call: ServerUnaryCall<object, object>, reply: sendUnaryData<object>) => void;
type Stream = (call: ServerWritableStream<object, object>) => void;

const runtimeService = "runtime.v1.RuntimeService";
const imageService = "runtime.v1.ImageService";
const versionResponse = { version: "0.1.0", runtime_name: "fake", runtime_version: "1", runtime_api_version: "v1" };
const version: Unary = (_call, reply) => reply(null, versionResponse);

let sockets = 0;

/** A runtime on a unix socket that serves these methods only. @returns its endpoint */
async function serve(handlers: Record<string, Unary | Stream>): Promise<string> {
  const proto = await loadProto("runtime.v1.proto");
  const server = new Server();
  for (const [name, handler] of Object.entries(handlers)) {
    const [service = "", method = ""] = name.includes("/") ? name.split("/") : [runtimeService, name];
    const definition: MethodDefinition<object, object> = proto.method(service, method);
    server.register(
      definition.path,
      handler,
      definition.responseSerialize,
      definition.requestDeserialize,
      definition.responseStream ? "serverStream" : "unary",
    );
  }
  sockets += 1;
  const endpoint = `unix://${join(dir, `${sockets}.sock`)}`;
  await new Promise<void>((resolve, reject) => {
    server.bindAsync(endpoint, ServerCredentials.createInsecure(), (err) => (err === null ? resolve() : reject(err)));
  });
  onTestFinished(() => server.forceShutdown());
  return endpoint;
}

async function connect(runtimeEndpoint: string, options: { requestTimeoutMs?: number; imageEndpoint?: string } = {}) {
  const { requestTimeoutMs = 10_000, ...rest } = options;
  const runtime = await connectCRI({ runtimeEndpoint, requestTimeoutMs, log: silentLogger, ...rest });
  onTestFinished(() => runtime.close());
  return runtime;
}

test("connecting checks who answers", async () => {
  const runtime = await connect(await serve({ Version: version }));
  expect(await runtime.version()).toEqual({ runtimeName: "fake", runtimeVersion: "1", runtimeApiVersion: "v1" });
});

test("a runtime without CRI v1 is told apart from one that is not there", async () => {
  const old = await serve({ Status: version });
  await expect(connect(old)).rejects.toMatchObject({
    code: "Unimplemented",
    message: expect.stringContaining(`container runtime at ${old} does not serve CRI v1`) as string,
  });
  const other = await serve({ Version: (_call, reply) => reply(null, { ...versionResponse, version: "0.2.0" }) });
  await expect(connect(other)).rejects.toMatchObject({ code: "Unimplemented" });
  await expect(connect(`unix://${dir}/nobody.sock`)).rejects.toMatchObject({ code: "Unavailable" });
  await expect(connect("tcp://127.0.0.1:1")).rejects.toMatchObject({ code: "Invalid" });
});

test("a runtime that cannot tell its cgroup driver is no error", async () => {
  const silent = await connect(await serve({ Version: version }));
  expect(await silent.cgroupDriver()).toBeUndefined();
  for (const [said, want] of [
    ["SYSTEMD", "systemd"],
    ["CGROUPFS", "cgroupfs"],
  ]) {
    const RuntimeConfig: Unary = (_call, reply) => reply(null, { linux: { cgroup_driver: said } });
    const runtime = await connect(await serve({ Version: version, RuntimeConfig }));
    expect(await runtime.cgroupDriver()).toBe(want);
  }
});

test("every call has its deadline; pulls and unlimited execs have none", async () => {
  const requestTimeoutMs = 60_000;
  const leftSeconds: Record<string, number> = {};
  const note =
    (name: string): Unary =>
    (call, reply) => {
      const deadline = Number(call.getDeadline());
      leftSeconds[name] = Math.round((deadline - Date.now()) / 1000);
      reply(null, {});
    };
  const methods = ["RunPodSandbox", "StopPodSandbox", "CreateContainer", "StopContainer", "ExecSync"];
  const handlers = Object.fromEntries(methods.map((name) => [name, note(name)]));
  const pull = { [`${imageService}/PullImage`]: note("PullImage") };
  const runtime = await connect(await serve({ Version: version, ...handlers, ...pull }), { requestTimeoutMs });
  const sandbox = await sandboxConfig(dir, "/x");
  await runtime.runPodSandbox(sandbox, "");
  await runtime.stopPodSandbox("s");
  await runtime.createContainer("s", await containerConfig(sandbox, "c", "i", []), sandbox);
  await runtime.stopContainer("c", 30);
  await runtime.execSync("c", ["true"], 5);
  await runtime.images.pullImage("i", { annotations: {} });
  expect(leftSeconds).toEqual({
    RunPodSandbox: 120,
    StopPodSandbox: 60,
    CreateContainer: 60,
    StopContainer: 90,
    ExecSync: 65,
    PullImage: Number.POSITIVE_INFINITY,
  });
  await runtime.execSync("c", ["true"], 0);
  expect(leftSeconds.ExecSync).toBe(Number.POSITIVE_INFINITY);
});

test("a call that is not answered ends at its deadline, with a message that names the object", async () => {
  const runtime = await connect(await serve({ Version: version, StartContainer: () => {} }), { requestTimeoutMs: 100 });
  await expect(runtime.startContainer("c1")).rejects.toMatchObject({
    code: "DeadlineExceeded",
    message: expect.stringMatching(/^start container c1: /) as string,
  });
});

test("a canceled command is canceled in the runtime, too", async () => {
  const { promise: canceled, resolve } = Promise.withResolvers<void>();
  const { promise: begun, resolve: begin } = Promise.withResolvers<void>();
  const ExecSync: Unary = (call) => {
    call.on("cancelled", resolve);
    begin();
  };
  const runtime = await connect(await serve({ Version: version, ExecSync }));
  const stop = new AbortController();
  const run = runtime.execSync("c1", ["sleep", "100"], 0, stop.signal);
  await begun;
  stop.abort();
  await expect(run).rejects.toMatchObject({ code: "Canceled" });
  await canceled;
});

test("a canceled pull is canceled in the runtime, too", async () => {
  const { promise: canceled, resolve } = Promise.withResolvers<void>();
  const { promise: begun, resolve: begin } = Promise.withResolvers<void>();
  const PullImage: Unary = (call) => {
    call.on("cancelled", resolve);
    begin();
  };
  const runtime = await connect(await serve({ Version: version, [`${imageService}/PullImage`]: PullImage }));
  const stop = new AbortController();
  const pull = runtime.images.pullImage("i", { annotations: {}, signal: stop.signal });
  await begun;
  stop.abort();
  await expect(pull).rejects.toMatchObject({ code: "Canceled" });
  await canceled;
  await expect(runtime.images.pullImage("i", { annotations: {}, signal: stop.signal })).rejects.toMatchObject({
    code: "Canceled",
  });
});

test("lists of more than gRPC's usual 4 MiB arrive", async () => {
  const annotations = { big: "x".repeat(10_000) };
  const items = Array.from({ length: 1_000 }, (_, n) => ({ id: `s${n}`, annotations }));
  const runtime = await connect(
    await serve({
      Version: version,
      ListPodSandbox: (_call, reply) => reply(null, { items }),
      ListContainers: (_call, reply) => reply(null, {}),
    }),
  );
  expect((await runtime.list()).sandboxes).toHaveLength(1_000);
});

test("images may live behind another socket", async () => {
  const images = await serve({
    [`${imageService}/ImageStatus`]: (_call, reply) => reply(null, { image: { id: "sha256:1", size: 7 } }),
  });
  const runtime = await connect(await serve({ Version: version }), { imageEndpoint: images });
  expect(await runtime.images.imageStatus("i")).toMatchObject({ id: "sha256:1", sizeBytes: 7 });
});

test("CRI's own events name the pod; after the stream broke they come again", async () => {
  let stream: ServerWritableStream<object, object> | undefined;
  const endpoint = await serve({
    Version: version,
    GetContainerEvents: (call: ServerWritableStream<object, object>) => void (stream = call),
  });
  const runtime = await connect(endpoint);
  const stop = new AbortController();
  const seen: RuntimeEvent[] = [];
  const done = runtime.events((event) => void seen.push(event), stop.signal);
  await expect.poll(() => seen.length).toBe(1); // the wake for all
  await expect.poll(() => stream).toBeDefined();
  const event = (type: string, pod: object | null) =>
    stream?.write({
      container_id: "c1",
      container_event_type: type,
      created_at: "1500250000",
      pod_sandbox_status: pod,
    });
  event("CONTAINER_STOPPED_EVENT", { id: "s1", metadata: { uid: "u1" } });
  event("CONTAINER_DELETED_EVENT", null);
  await expect
    .poll(() => seen.filter(({ containerID }) => containerID === "c1"))
    .toEqual([
      { kind: "exited", podUID: "u1", containerID: "c1", createdAtMs: 1_500.25 },
      { kind: "deleted", podUID: undefined, containerID: "c1", createdAtMs: 1_500.25 },
    ]);

  const broken = stream;
  broken?.emit("error", { code: status.UNAVAILABLE, details: "restarting" });
  await expect.poll(() => stream !== broken && stream !== undefined).toBe(true);
  event("CONTAINER_STARTED_EVENT", { id: "s1", metadata: { uid: "u2" } });
  await expect.poll(() => seen.at(-1)).toMatchObject({ kind: "started", podUID: "u2", containerID: "c1" });
  stop.abort();
  await done;
});

test("whether containers are plain processes is asked anew with each connection for events", async () => {
  let handler = "io.containerd.runc.v2";
  const asked: boolean[] = [];
  let stream: ServerWritableStream<object, object> | undefined;
  const Status: Unary = (call, reply) => {
    asked.push("verbose" in call.request && call.request.verbose === true);
    const containerd = { defaultRuntimeName: "default", runtimes: { default: { runtimeType: handler } } };
    reply(null, { info: { config: JSON.stringify({ containerd }) } });
  };
  const GetContainerEvents: Stream = (call) => void (stream = call);
  const runtime = await connect(await serve({ Version: version, Status, GetContainerEvents }));
  expect(runtime.hasPlainContainers?.()).toBe(false);
  const stop = new AbortController();
  const done = runtime.events(() => {}, stop.signal);
  await expect.poll(() => runtime.hasPlainContainers?.()).toBe(true);
  handler = "io.containerd.kata.v2";
  await expect.poll(() => stream).toBeDefined();
  stream?.emit("error", { code: status.UNAVAILABLE, details: "restarting" });
  await expect.poll(() => asked).toEqual([true, true]);
  expect(runtime.hasPlainContainers?.()).toBe(false);
  stop.abort();
  await done;
});

test("of a runtime that does not tell, nothing is known of its containers", async () => {
  let asked = 0;
  const Status: Unary = (_call, reply) => {
    asked += 1;
    reply({ code: status.INTERNAL, details: "no such answer" });
  };
  const runtime = await connect(await serve({ Version: version, Status }));
  const stop = new AbortController();
  const done = runtime.events(() => {}, stop.signal);
  await expect.poll(() => asked).toBeGreaterThan(0);
  expect(runtime.hasPlainContainers?.()).toBe(false);
  stop.abort();
  await done;
});

test("a snapshot leaves out what vanished between the list and the look", async () => {
  const labels = { "io.kubernetes.pod.uid": "u1" };
  const gone: Unary = (_call, reply) => reply({ code: status.NOT_FOUND, details: "gone" });
  const ContainerStatus: Unary = (call, reply) => {
    const id = "container_id" in call.request ? call.request.container_id : "";
    if (id === "c1") reply(null, { status: { id, labels } });
    else gone(call, reply);
  };
  const runtime = await connect(
    await serve({
      Version: version,
      ListPodSandbox: (_call, reply) => reply(null, { items: [{ id: "s1" }] }),
      ListContainers: (_call, reply) =>
        reply(null, {
          containers: [
            { id: "c1", pod_sandbox_id: "s1", labels },
            { id: "c2", labels },
          ],
        }),
      PodSandboxStatus: gone,
      ContainerStatus,
    }),
  );
  const { sandboxes, containers } = await runtime.podSnapshot("u1");
  expect(sandboxes).toEqual([]);
  expect(containers.map(({ id, sandboxID }) => ({ id, sandboxID }))).toEqual([{ id: "c1", sandboxID: "s1" }]);
});

test("a release carries the interface files inside", async () => {
  const { default: protobuf } = await import("protobufjs");
  const text = await readFile(new URL("../../../proto/containerd-events.proto", import.meta.url), "utf8");
  const json = protobuf.parse(text, { keepCase: true }).root.toJSON();
  const globals: { NODELET_PROTO_JSON?: object } = globalThis as object;
  onTestFinished(() => {
    delete globals.NODELET_PROTO_JSON;
  });
  globals.NODELET_PROTO_JSON = { "containerd-events.proto": json };
  const proto = await loadProto("containerd-events.proto");
  const bytes = Buffer.from([10, 2, 99, 49]);
  expect(proto.decode("containerd.services.events.v1.TaskOOM", bytes)).toEqual({ container_id: "c1" });
  await expect(loadProto("runtime.v1.proto")).rejects.toThrow("made without runtime.v1.proto");
});
