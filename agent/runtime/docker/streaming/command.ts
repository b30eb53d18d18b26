import type { Duplex } from "node:stream";
import { forEachChunk } from "../../../lib/chunks.ts";
import type { Clock } from "../../../lib/clock.ts";
import { AgentError, ifThere, messageOf } from "../../../lib/errors.ts";
import type { StreamingRequest } from "../../port.ts";
import type { DockerClient } from "../client.ts";
import { inspectContainer } from "../create.ts";
import { detachKeys, type DockerExecs } from "../exec.ts";
import type { CommandChannels, SessionOutcome } from "./channels.ts";
import { outputParser } from "../frames.ts";
import { readToEnd } from "../hijacked.ts";
import { parseSizes, type TerminalSize } from "./sizes.ts";

// While input is held back nothing is read from the client: one that is lost shows when something is sent to it.
export const probeIntervalMs = 5_000;

// What a container said before it ended comes within moments of its end.
export const lastWordsMs = 2_000;

// Of an error that the daemon writes where output should be: a few lines.
const errorBytesMax = 64 << 10;

/** What a session needs besides its request. */
export interface SessionDeps {
  readonly client: DockerClient;
  readonly execs: DockerExecs;
  readonly clock: Clock;
}

/** Runs a command for a client, to its end. The command ends with its client. Never rejects. */
export async function serveExec(
  request: Extract<StreamingRequest, { kind: "exec" }>,
  channels: CommandChannels,
  deps: SessionDeps,
): Promise<void> {
  const outcome = await execFor(request, channels, deps).catch((err: unknown): SessionOutcome => {
    return { kind: "failed", message: `error executing command in container: ${messageOf(err)}` };
  });
  await channels.finish(outcome);
}

async function execFor(
  { containerID, command, tty, stdin }: Extract<StreamingRequest, { kind: "exec" }>,
  channels: CommandChannels,
  { execs, clock }: SessionDeps,
): Promise<SessionOutcome> {
  const exec = await execs.start({ containerID, command, tty, stdin }, channels.gone);
  const onGone = () => void exec.kill("SIGTERM");
  channels.gone.addEventListener("abort", onGone);
  if (channels.gone.aborted) onGone();
  let isRunning = false;
  let said = "";
  const input = carryInput(channels, exec.socket, clock);
  carrySizes(channels, async (size) => await exec.resize(size.width, size.height, channels.gone));
  try {
    const parser = outputParser(tty);
    await forEachChunk(exec.socket, async (chunk) => {
      // Until the command runs, what comes is the daemon's complaint that it does not.
      isRunning ||= await exec.started(channels.gone);
      if (isRunning) await carryOutput(parser.push(chunk), channels);
      else for (const { payload } of parser.push(chunk)) said = (said + payload.toString()).slice(0, errorBytesMax);
    });
    exec.socket.destroy();
    await input;
    const outcome = await exec.outcome(said, channels.gone);
    if (outcome.kind === "exited") return { kind: "exited", exitCode: outcome.exitCode, command };
    return { kind: "failed", message: `error executing command in container: ${outcome.message}` };
  } catch (err) {
    onGone(); // nobody reads what it says any more
    throw err;
  } finally {
    channels.gone.removeEventListener("abort", onGone);
    exec.socket.destroy();
    await input;
  }
}

/** Connects a client with a container's main process. It goes on when the client leaves. Never rejects. */
export async function serveAttach(
  request: Extract<StreamingRequest, { kind: "attach" }>,
  channels: CommandChannels,
  deps: SessionDeps,
): Promise<void> {
  const outcome = await attachFor(request, channels, deps).catch((err: unknown): SessionOutcome => {
    return { kind: "failed", message: `error attaching to container: ${messageOf(err)}` };
  });
  await channels.finish(outcome);
}

async function attachFor(
  { containerID, stdin }: Extract<StreamingRequest, { kind: "attach" }>,
  channels: CommandChannels,
  { client, clock }: SessionDeps,
): Promise<SessionOutcome> {
  const container = client.docker.getContainer(containerID);
  const inspect = async () =>
    await inspectContainer(client, `container ${containerID}`, containerID, { signal: channels.gone });
  const { State, Config } = await inspect();
  if (State?.Running !== true) throw new AgentError("Conflict", `container ${containerID} is not running`);
  const hasInput = stdin && Config?.OpenStdin === true;
  const options = { stream: true, stdin: hasInput, stdout: true, stderr: true, hijack: true, detachKeys };
  const connection = await client.call(
    `attach to container ${containerID}`,
    async (abortSignal) => await container.attach({ ...options, abortSignal }),
    { signal: channels.gone },
  );
  const socket = readToEnd(connection as Duplex);
  const onGone = () => socket.destroy();
  channels.gone.addEventListener("abort", onGone);
  if (channels.gone.aborted) onGone();
  const input = hasInput ? carryInput(channels, socket, clock) : channels.stdin?.resume();
  const resize = async ({ width, height }: TerminalSize) =>
    await client.call(
      `terminal size of container ${containerID}`,
      async (abortSignal) => void (await container.resize({ w: width, h: height, abortSignal })),
      { signal: channels.gone },
    );
  carrySizes(channels, resize);
  const parser = outputParser(Config?.Tty === true);
  const output = forEachChunk(socket, async (chunk) => await carryOutput(parser.push(chunk), channels));
  try {
    // Whoever attaches to a container that has just ended would wait for its next start.
    const { State: since } = await inspect();
    if (since?.Running === true) await output;
    else await Promise.race([output, clock.sleep(lastWordsMs, channels.gone)]);
    // The end of the daemon looks like that of the output. Rejects unless it answers; the container may be gone by now.
    await ifThere(inspect());
    return { kind: "success" };
  } finally {
    channels.gone.removeEventListener("abort", onGone);
    socket.destroy();
    await Promise.all([input, output.catch(() => {})]);
  }
}

async function carryOutput(
  pieces: Iterable<{ stream: "stdout" | "stderr" | "system"; payload: Buffer }>,
  channels: CommandChannels,
): Promise<void> {
  for (const { stream, payload } of pieces) {
    if (stream === "system") throw new AgentError("Internal", payload.toString());
    await channels.write(stream, payload);
  }
}

/** Until the client ends its input, or the other side takes no more. Never rejects. */
async function carryInput(channels: CommandChannels, socket: Duplex, clock: Clock): Promise<void> {
  const { stdin } = channels;
  if (stdin === undefined) return;
  const closed = Promise.withResolvers<void>();
  socket.once("close", closed.resolve);
  if (socket.destroyed) closed.resolve();
  // What comes when nobody takes it any more is read all the same: it must not stop the rest of the connection.
  const carried = forEachChunk(stdin, async (chunk) => {
    if (socket.destroyed || socket.writableEnded) return;
    const stopProbing = every(clock, probeIntervalMs, () => channels.probe());
    await new Promise<void>((resolve) => void socket.write(chunk, () => resolve()));
    stopProbing();
  }).then(
    () => socket.end(),
    () => socket.end(),
  );
  await Promise.race([carried, closed.promise]);
}

/** Tells the terminal each size that the client has, the newest only where they come faster than it takes them. */
function carrySizes({ sizes }: CommandChannels, apply: (size: TerminalSize) => Promise<void>): void {
  if (sizes === undefined) return;
  let wanted: TerminalSize | undefined;
  let isBusy = false;
  const applyNewest = async () => {
    isBusy = true;
    for (let size = wanted; size !== undefined; size = wanted) {
      wanted = undefined;
      await apply(size).catch(() => {}); // it has ended: there is nothing to see
    }
    isBusy = false;
  };
  const parse = parseSizes();
  sizes.on("data", (chunk: Buffer) => {
    wanted = parse(chunk) ?? wanted;
    if (wanted !== undefined && !isBusy) void applyNewest();
  });
}

/** Calls `what` again and again. @returns stops that */
function every(clock: Clock, ms: number, what: () => void): () => void {
  let timer = clock.after(ms, function again() {
    what();
    timer = clock.after(ms, again);
  });
  return () => timer.cancel();
}
