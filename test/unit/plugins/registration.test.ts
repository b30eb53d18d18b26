import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type handleUnaryCall, Server, ServerCredentials } from "@grpc/grpc-js";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { loadProto } from "../../../agent/lib/grpc/proto.ts";
import { openRegistration, type RegistrationClient } from "../../../agent/plugins/registration.ts";

type Handler = handleUnaryCall<object, object>;

describe("the conversation with a plugin", () => {
  let dir: string;
  let socket: string;
  let server: Server;
  let client: RegistrationClient;
  const { signal } = new AbortController();
  const told: object[] = [];

  const serve = async (getInfo: Handler) => {
    const proto = await loadProto("pluginregistration.v1.proto");
    const notify: Handler = ({ request }, answer) => {
      told.push(request);
      answer(null, {});
    };
    for (const [name, handler] of Object.entries({ GetInfo: getInfo, NotifyRegistrationStatus: notify })) {
      const method = proto.method("pluginregistration.Registration", name);
      server.register(method.path, handler, method.responseSerialize, method.requestDeserialize, "unary");
    }
    await new Promise<void>((resolve, reject) => {
      const done = (err: Error | null) => (err === null ? resolve() : reject(err));
      server.bindAsync(`unix://${socket}`, ServerCredentials.createInsecure(), done);
    });
  };

  beforeEach(async () => {
    dir = await mkdtemp(join(tmpdir(), "registration-"));
    socket = join(dir, "reg.sock");
    server = new Server();
    told.length = 0;
    client = await openRegistration(socket);
  });
  afterEach(async () => {
    client.close();
    server.forceShutdown();
    await rm(dir, { recursive: true });
  });

  test("a plugin says who it is, and hears how it went", async () => {
    await serve((_, answer) =>
      answer(null, { type: "CSIPlugin", name: "a.test", endpoint: "/csi.sock", supported_versions: ["1.0.0"] }),
    );
    expect(await client.info(signal)).toEqual({
      type: "CSIPlugin",
      name: "a.test",
      endpoint: "/csi.sock",
      supportedVersions: ["1.0.0"],
    });
    await client.notify(undefined, signal);
    await client.notify("no such version", signal);
    expect(told).toEqual([
      { plugin_registered: true, error: "" },
      { plugin_registered: false, error: "no such version" },
    ]);
  });

  test("one that names no endpoint serves on its registration socket", async () => {
    await serve((_, answer) => answer(null, { type: "DevicePlugin", name: "gpu.test/x" }));
    expect(await client.info(signal)).toMatchObject({ endpoint: socket, supportedVersions: [] });
  });

  test("one without a name is none", async () => {
    await serve((_, answer) => answer(null, { type: "CSIPlugin" }));
    await expect(client.info(signal)).rejects.toMatchObject({
      code: "Invalid",
      message: `ask the plugin at ${socket} who it is: it has no name`,
    });
  });

  test("one that listens a moment after its socket was asked for is waited for", async () => {
    const asked = client.info(signal);
    await serve((_, answer) => answer(null, { type: "CSIPlugin", name: "late.test" }));
    expect(await asked).toMatchObject({ name: "late.test" });
  });

  test("one that does not answer is given up", async () => {
    await serve(() => {});
    await expect(client.info(signal)).rejects.toMatchObject({ code: "DeadlineExceeded" });
  });

  test("nobody waits for a dead socket once it has gone", async () => {
    const abort = new AbortController();
    const asked = client.info(abort.signal);
    abort.abort();
    await expect(asked).rejects.toMatchObject({ code: "Canceled" });
  });
});
