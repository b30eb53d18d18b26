import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import type { Duplex } from "node:stream";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { systemClock } from "../../../agent/lib/clock.ts";
import { SpdyConnection } from "../../../agent/lib/spdy/connection.ts";
import type { Runtime } from "../../../agent/runtime/port.ts";
import { busyboxImageName, webImageName } from "../images/images.ts";
import type { NodeProcess } from "../node/containerd.ts";
import type { TestNode } from "../node/node.ts";
import type { AgentConnection } from "./agent-process.ts";
import { containerConfig, sandboxConfig } from "../runtime/configs.ts";
import { eventually } from "../runtime/watching.ts";
import { readAll, spdyClient, tunnelClient, wsClient } from "./clients.ts";

/** A container runtime for the scenarios. */
export interface StreamingSubject {
  readonly node: TestNode;
  readonly runtime: Runtime;
  /** How the agent's process is to connect to it. */
  readonly connection: AgentConnection;
  /** Kills the runtime and starts it again; containers go on. */
  restart(): Promise<void>;
  /** What is told on the error stream by SPDY of a session whose runtime was killed. */
  readonly lostStatus: RegExp;
  /** Whether a command is killed when its client goes away; if not, its input ends and no more. */
  readonly killsCommands: boolean;
  dispose(): Promise<void>;
}

const root = new URL("../../..", import.meta.url).pathname;
const port = 10_250;
// Of 100 MiB each way; garbage that waits to be collected on a busy machine is among it.
const heldBytesMax = 60 << 20;
const [stdin, stdout, stderr, error, resize, close] = [0, 1, 2, 3, 4, 255];

/** What clients of exec, attach and port-forward see of an agent with that runtime. Declares its tests. */
export function streamingScenarios(start: () => Promise<StreamingSubject>): void {
  let subject: StreamingSubject;
  let node: TestNode;
  let runtime: Runtime;
  let agent: NodeProcess;
  let containers: { app: string; shell: string; doomed: string };

  beforeAll(async () => {
    subject = await start();
    ({ node, runtime } = subject);
    const config = await sandboxConfig(node.dir, node.cgroupRoot, {
      name: "web",
      namespace: "default",
      uid: "uid-web",
    });
    const sandboxID = await runtime.runPodSandbox(config, "");
    const startContainer = async (
      ...args: Parameters<typeof containerConfig> extends [unknown, ...infer Rest] ? Rest : never
    ) => {
      const id = await runtime.createContainer(sandboxID, await containerConfig(config, ...args), config);
      await runtime.startContainer(id);
      return id;
    };
    const shell = 'while read line; do echo "heard $line"; done; echo bye';
    containers = {
      app: await startContainer("app", busyboxImageName, ["sleep", "100000"]),
      shell: await startContainer("shell", busyboxImageName, ["sh", "-c", shell], { stdin: true }),
      doomed: await startContainer("doomed", busyboxImageName, ["sleep", "100000"]),
    };
    await startContainer("web", webImageName, []);
    const pod = {
      metadata: { name: "web", namespace: "default", uid: "uid-web" },
      spec: { containers: [{ name: "app" }, { name: "shell", stdin: true }, { name: "web" }, { name: "doomed" }] },
    };
    agent = await node.start(
      `${root}.ci/node`,
      [
        `${root}test/support/streaming/agent-process.ts`,
        JSON.stringify(subject.connection),
        String(port),
        JSON.stringify([pod]),
      ],
      { name: "streaming" },
    );
    await eventually(running, 30_000);
  });

  afterAll(async () => {
    await subject?.dispose();
  });

  const kinds = [
    { name: "plain", base: () => `http://${node.nodeIP}:${port}` },
    { name: "TLS", base: () => `https://${node.nodeIP}:${port + 1}` },
  ];
  const [plain] = kinds;

  function execURL(script: string, streams: string, base = plain!.base()): string {
    const command = ["sh", "-c", script].map((word) => `command=${encodeURIComponent(word)}`).join("&");
    return `${base}/exec/default/web/app?${command}&${streams}`;
  }

  async function running(): Promise<number> {
    const response = await fetch(`http://${node.nodeIP}:${port + 2}/`, { signal: AbortSignal.timeout(5_000) });
    return Number(await response.text());
  }

  /** What `ps` in the container shows of a command. */
  async function processes(pattern: string): Promise<string[]> {
    const { stdout: text } = await runtime.execSync(containers.app, ["ps", "-o", "pid,args"], 10);
    const lines = text.toString().split("\n");
    return lines.filter((line) => line.includes(pattern));
  }

  async function residentBytes(): Promise<number> {
    const [, kilobytes] = /VmRSS:\s+(\d+) kB/.exec(await readFile(`/proc/${agent.pid}/status`, "utf8")) ?? [];
    return Number(kilobytes) * 1024;
  }

  /** One exec by SPDY: everything in, everything out. */
  async function exec(url: string, input?: string) {
    const { open, connection } = await spdyClient(url);
    const asked = new URL(url).searchParams;
    const errorStream = await open("error");
    const inStream = asked.has("input") ? await open("stdin") : undefined;
    const outStream = asked.has("output") ? await open("stdout") : undefined;
    const errStream = asked.has("error") ? await open("stderr") : undefined;
    inStream?.end(input);
    const read = async (stream: Duplex | undefined) => (stream === undefined ? "" : (await readAll(stream)).toString());
    const [status, out, err] = await Promise.all([read(errorStream), read(outStream), read(errStream)]);
    connection.destroy();
    return { status: JSON.parse(status) as object, out, err };
  }

  describe("exec by SPDY", () => {
    for (const { name, base } of kinds) {
      test(`${name}: output, errors and exit codes arrive apart`, async () => {
        const script = "echo out; echo err >&2; exit 7";
        expect(await exec(execURL(script, "output=1&error=1", base()))).toMatchObject({
          status: {
            status: "Failure",
            reason: "NonZeroExitCode",
            details: { causes: [{ reason: "ExitCode", message: "7" }] },
          },
          out: "out\n",
          err: "err\n",
        });
        expect(await exec(execURL("true", "output=1&error=1", base()))).toMatchObject({
          status: { status: "Success" },
        });
      });

      test(`${name}: the end of input reaches the command`, async () => {
        const { out, status } = await exec(execURL("wc -c", "input=1&output=1&error=1", base()), "x".repeat(123_456));
        expect(out.trim()).toBe("123456");
        expect(status).toMatchObject({ status: "Success" });
      });
    }

    test("a client that goes away leaves no command behind that needs it", async () => {
      const { open, socket } = await spdyClient(execURL("echo up; sleep 4321", "output=1&error=1"));
      await open("error");
      const output = await open("stdout");
      await open("stderr");
      await once(output, "data");
      expect(await processes("sleep 4321")).not.toEqual([]);
      socket.resetAndDestroy();
      await eventually(async () => expect(await running()).toBe(0));
      if (!subject.killsCommands) {
        const [line = ""] = (await processes("sleep 4321")).filter((text) => !text.includes("sh -c"));
        await runtime.execSync(containers.app, ["kill", line.trim().split(" ", 1)[0] ?? ""], 10);
      }
      await eventually(async () => expect(await processes("sleep 4321")).toEqual([]));
    });

    test("a command whose container ends under it", async () => {
      const { open } = await spdyClient(
        `${plain!.base()}/exec/default/web/doomed?command=sleep&command=1000&output=1&error=1`,
      );
      const errorStream = await open("error");
      await open("stdout");
      await open("stderr");
      await eventually(async () => {
        const { stdout: text } = await runtime.execSync(containers.doomed, ["ps", "-o", "args"], 10);
        expect(text.toString()).toContain("sleep 1000\n");
      });
      await runtime.stopContainer(containers.doomed, 0);
      expect(JSON.parse((await readAll(errorStream)).toString())).toMatchObject({ status: "Failure" });
    });

    test("a command that is not there", async () => {
      const url = `${plain!.base()}/exec/default/web/app?command=/no/such/file&output=1&error=1`;
      expect((await exec(url)).status).toMatchObject({
        status: "Failure",
        message: expect.stringContaining("no such file"),
      });
    });

    test("a command that is killed", async () => {
      const { status } = await exec(execURL("kill -9 $$", "output=1&error=1"));
      expect(status).toMatchObject({ details: { causes: [{ reason: "ExitCode", message: "137" }] } });
    });

    test("a terminal has the size that the client says, also after it changed", async () => {
      const { open, connection } = await spdyClient(
        execURL("while read x; do stty size; done", "input=1&output=1&tty=1"),
      );
      const errorStream = await open("error");
      const input = await open("stdin");
      const output = await open("stdout");
      const sizes = await open("resize");
      const seen: string[] = [];
      output.on("data", (chunk: Buffer) => seen.push(chunk.toString()));
      const sees = async (width: number, height: number) => {
        sizes.write(`{"Width":${width},"Height":${height}}\n`);
        await eventually(async () => {
          input.write("\n");
          expect(seen.join("")).toContain(`${height} ${width}`);
        });
      };
      await sees(120, 40);
      await sees(97, 13);
      input.write("\u0004");
      expect((await readAll(errorStream)).toString()).toContain("Success");
      connection.destroy();
    });

    test("the client's death ends the input of the command", async () => {
      const { open, socket } = await spdyClient(execURL("exec cat # until-eof", "input=1&output=1&error=1"));
      await open("error");
      const input = await open("stdin");
      const output = await open("stdout");
      await open("stderr");
      input.write("hello");
      await once(output, "data");
      expect(await processes("cat")).toHaveLength(1);
      socket.resetAndDestroy();
      await eventually(async () => expect(await processes("cat")).toEqual([]));
      await eventually(async () => expect(await running()).toBe(0));
    });
  });

  describe("exec by WebSocket v5", () => {
    for (const { name, base } of kinds) {
      test(`${name}: input with its end, output, errors, exit code`, async () => {
        const client = await wsClient(execURL("wc -c; echo err >&2; exit 3", "input=1&output=1&error=1", base()));
        client.send(stdin, "x".repeat(10_000));
        client.ws.send(Buffer.of(close, stdin));
        expect(await client.closed).toBe(1000);
        expect(client.text(stdout).trim()).toBe("10000");
        expect(client.text(stderr)).toBe("err\n");
        expect(JSON.parse(client.text(error))).toMatchObject({
          details: { causes: [{ reason: "ExitCode", message: "3" }] },
        });
      });
    }

    test("a terminal and its sizes", async () => {
      const client = await wsClient(execURL("while read x; do stty size; done", "input=1&output=1&tty=1"));
      for (const [width, height] of [
        [120, 40],
        [97, 13],
      ]) {
        client.send(resize, `{"Width":${width},"Height":${height}}`);
        await eventually(async () => {
          client.send(stdin, "\n");
          expect(client.text(stdout)).toContain(`${height} ${width}`);
        });
      }
      client.send(stdin, "\u0004");
      expect(await client.closed).toBe(1000);
      expect(client.text(error)).toContain("Success");
    });

    test("a command that is not there, and one that is killed", async () => {
      const missing = await wsClient(`${plain!.base()}/exec/default/web/app?command=/no/such/file&output=1`);
      await missing.closed;
      expect(JSON.parse(missing.text(error))).toMatchObject({ message: expect.stringContaining("no such file") });
      const killed = await wsClient(execURL("kill -9 $$", "output=1"));
      await killed.closed;
      expect(killed.text(error)).toContain('"137"');
    });

    test("the client's death ends the input of the command", async () => {
      const client = await wsClient(execURL("exec cat", "input=1&output=1"));
      client.send(stdin, "hello");
      await client.until(stdout, "hello");
      client.ws.terminate();
      await eventually(async () => expect(await processes("cat")).toEqual([]));
      await eventually(async () => expect(await running()).toBe(0));
    });

    test("protocols of old are the runtime's own", async () => {
      const client = await wsClient(execURL("echo old; exit 5", "output=1&error=1"), "v4.channel.k8s.io");
      await client.closed;
      expect(client.text(stdout)).toBe("old\n");
      expect(client.text(error)).toContain('"5"');
    });
  });

  describe("many and much", () => {
    test("16 sessions at a time, each of them right", async () => {
      const results = await Promise.all(
        // More would try the runtime: containerd's shim takes minutes for a hundred on two cores, whoever asks.
        Array.from({ length: 16 }, async (_, i) => {
          const script = `cat; echo " from ${i}"; exit ${i}`;
          if (i % 2 === 0) return await exec(execURL(script, "input=1&output=1&error=1"), `hello ${i}`);
          const client = await wsClient(execURL(script, "input=1&output=1&error=1", kinds[1]!.base()));
          client.send(stdin, `hello ${i}`);
          client.ws.send(Buffer.of(close, stdin));
          await client.closed;
          return { out: client.text(stdout), status: JSON.parse(client.text(error)) as object };
        }),
      );
      for (const [i, { out, status }] of results.entries()) {
        expect(out).toBe(`hello ${i} from ${i}\n`);
        expect(status).toMatchObject(
          i === 0 ? { status: "Success" } : { details: { causes: [{ message: String(i) }] } },
        );
      }
      await eventually(async () => expect(await running()).toBe(0));
    }, 120_000);

    const block = randomBytes(1 << 20);
    const blocks = 100;
    const want = createHash("sha256");
    for (let i = 0; i < blocks; i += 1) want.update(block);
    const wantHex = want.digest("hex");

    for (const { name, base } of kinds) {
      test(`${name}: 100 MiB each way by SPDY, whole, within flat memory`, async () => {
        const { open, connection } = await spdyClient(
          execURL("tee /dev/stderr | sha256sum", "input=1&output=1&error=1", base()),
        );
        const errorStream = await open("error");
        const input = await open("stdin");
        const output = await open("stdout");
        const echoed = await open("stderr");
        const before = await residentBytes();
        let most = 0;
        const hash = createHash("sha256");
        const reading = (async () => {
          for await (const chunk of echoed) hash.update(chunk as Buffer);
        })();
        const startedAt = performance.now();
        for (let i = 0; i < blocks; i += 1) {
          if (!input.write(block)) await once(input, "drain");
          if (i % 10 === 0) most = Math.max(most, await residentBytes());
        }
        input.end();
        const [sum] = await Promise.all([readAll(output), reading, readAll(errorStream)]);
        const seconds = (performance.now() - startedAt) / 1000;
        expect(sum.toString()).toContain(wantHex);
        expect(hash.digest("hex")).toBe(wantHex);
        console.info(
          `${name}: ${((2 * blocks) / seconds).toFixed(0)} MiB/s, ${((most - before) / 1e6).toFixed(1)} MB more`,
        );
        expect(most - before).toBeLessThan(heldBytesMax);
        connection.destroy();
      }, 120_000);

      test(`${name}: 100 MiB each way by WebSocket, whole, within flat memory`, async () => {
        const client = await wsClient(execURL("tee /dev/stderr | sha256sum", "input=1&output=1&error=1", base()));
        const hash = createHash("sha256");
        client.ws.on("message", (message: Buffer) => {
          if (message[0] === stderr) hash.update(message.subarray(1));
        });
        const before = await residentBytes();
        let most = 0;
        for (let i = 0; i < blocks; i += 1) {
          for (let at = 0; at < block.length; at += 32 * 1024) {
            await new Promise<void>((resolve) => {
              client.ws.send(Buffer.concat([Buffer.of(stdin), block.subarray(at, at + 32 * 1024)]), () => resolve());
            });
          }
          if (i % 10 === 0) most = Math.max(most, await residentBytes());
        }
        client.ws.send(Buffer.of(close, stdin));
        await client.closed;
        expect(client.text(stdout)).toContain(wantHex);
        expect(hash.digest("hex")).toBe(wantHex);
        expect(most - before).toBeLessThan(heldBytesMax);
      }, 120_000);
    }
  });

  describe("attach", () => {
    test("by SPDY and by WebSocket, one after the other", async () => {
      const url = `${plain!.base()}/attach/default/web/shell?input=1&output=1&error=1`;
      const { open, connection } = await spdyClient(url);
      await open("error");
      const input = await open("stdin");
      const output = await open("stdout");
      await open("stderr");
      input.write("spdy\n");
      await eventually(async () => expect(String(output.read() ?? "")).toContain("heard spdy"));
      connection.destroy();

      const client = await wsClient(url);
      client.send(stdin, "websocket\n");
      await client.until(stdout, "heard websocket");
      client.ws.terminate();
      expect((await runtime.containerStatus(containers.shell)).state).toBe("running");
      await eventually(async () => expect(await running()).toBe(0));
    });
  });

  describe("port-forward", () => {
    const request = "GET /cgi-bin/hostname HTTP/1.0\r\n\r\n";
    const get = async (connection: SpdyConnection, id: number, target = 8080) => {
      const headers = { port: [String(target)], requestid: [String(id)] };
      const errorStream = await connection.open({ streamtype: ["error"], ...headers });
      errorStream.end();
      const data = await connection.open({ streamtype: ["data"], ...headers });
      data.end(request);
      const [answer, failure] = await Promise.all([readAll(data), readAll(errorStream)]);
      return { answer: answer.toString(), failure: failure.toString() };
    };

    for (const { name, base } of kinds) {
      test(`${name}: by SPDY, ten connections at a time; one that is refused does not end the others`, async () => {
        const { connection } = await spdyClient(`${base()}/portForward/default/web`, ["portforward.k8s.io"]);
        const answers = await Promise.all(Array.from({ length: 10 }, async (_, i) => await get(connection, i)));
        for (const { answer, failure } of answers) {
          expect(failure).toBe("");
          expect(answer).toMatch(/200 OK[^]*web/);
        }
        expect((await get(connection, 10, 9999)).failure).toMatch(/refused/);
        expect((await get(connection, 11)).answer).toContain("200 OK");
        connection.destroy();
        await eventually(async () => expect(await running()).toBe(0));
      });

      test(`${name}: in a tunnel`, async () => {
        const { tunnel, closed, head } = await tunnelClient(`${base()}/portForward/default/web`);
        expect(head).toContain("Sec-WebSocket-Protocol: SPDY/3.1+portforward.k8s.io");
        const connection = new SpdyConnection(tunnel, { role: "client", clock: systemClock });
        expect((await get(connection, 0)).answer).toMatch(/200 OK[^]*web/);
        expect((await get(connection, 1, 9999)).failure).toMatch(/refused/);
        connection.close();
        expect(await closed).toBe(1000);
        await eventually(async () => expect(await running()).toBe(0));
      });
    }
  });

  describe("the rest", () => {
    test("/run gives stdout and stderr, and 500 with what the command said", async () => {
      const run = async (cmd: string) => {
        const response = await fetch(`${plain!.base()}/run/default/web/app?cmd=${encodeURIComponent(cmd)}`, {
          method: "POST",
        });
        return `${response.status} ${await response.text()}`;
      };
      expect(await run("echo hello")).toBe("200 hello\n");
      expect(await run("ls /no/such/file")).toMatch(/^500 command 'ls \/no\/such\/file' exited with 1: .*No such file/);
    });

    test("a runtime that is killed ends its sessions, and the next ones work", async () => {
      const spdy = await spdyClient(execURL("sleep 1000", "output=1&error=1"));
      const errorStream = await spdy.open("error");
      await spdy.open("stdout");
      await spdy.open("stderr");
      const client = await wsClient(execURL("echo up; sleep 1000", "output=1"));
      await client.until(stdout, "up");
      await subject.restart();
      await spdy.connection.closed;
      expect((await readAll(errorStream)).toString()).toMatch(subject.lostStatus);
      expect(await client.closed).toBe(1000);
      expect(JSON.parse(client.text(error))).toMatchObject({ status: "Failure", reason: "InternalError" });
      await eventually(async () => expect(await running()).toBe(0));
      await eventually(async () => expect((await exec(execURL("echo again", "output=1&error=1"))).out).toBe("again\n"));
    });
  });
}
