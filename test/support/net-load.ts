/** Connections in numbers, for one end of a test network: some that come and go, some that stay. */
import { connect, type Socket } from "node:net";
import { errnoOf } from "../../agent/lib/errno.ts";

/**
 * What became of connections that were opened one after the other, by the phase in which each began. A first packet may be for nothing (the
 * node gave it a port that the server remembers from a connection that just ended): the next one comes a second later, and finds its
 * way by the rules of that time.
 */
export type LoadReport = readonly {
  /** By the server's name; of those that ended in the same phase. */
  readonly answered: Counts;
  /** By the error; of those that ended in the same phase or in the next one. */
  readonly failed: Counts;
  /** The others, by either. */
  readonly late: Counts;
}[];

type Counts = Record<string, number>;

// Far longer than anything takes that works, also on a busy machine.
const answerMs = 10_000;

const load = { isOn: false };
let loaders: Promise<void>[] = [];
let report: LoadReport[number][] = [];
const held = new Set<Socket>();
let lost = 0;

/** Opens connections without a pause, `concurrency` at a time. The first word of an answer is the server's name. */
export function startLoad(host: string, port: number, concurrency: number): void {
  load.isOn = true;
  report = [{ answered: {}, failed: {}, late: {} }];
  loaders = Array.from({ length: concurrency }, async () => {
    while (load.isOn) await openOne(host, port);
  });
}

/** Connections that begin from now on are counted apart. */
export function nextPhase(): void {
  report.push({ answered: {}, failed: {}, late: {} });
}

/** How many connections have ended so far, well or badly. */
export function countEnded(): number {
  return report.flatMap((counts) => Object.values(counts).flatMap((of) => Object.values(of))).reduce(sum, 0);
}

export async function stopLoad(): Promise<LoadReport> {
  load.isOn = false;
  await Promise.all(loaders);
  return report;
}

async function openOne(host: string, port: number): Promise<void> {
  const beganIn = report.length - 1;
  const outcome = await ask(host, port).then(
    (text) => ({ kind: "answered" as const, what: text.split(" ")[0] ?? "", phasesMax: 0 }),
    (err: unknown) => ({ kind: "failed" as const, what: errnoOf(err) ?? String(err), phasesMax: 1 }),
  );
  const isLate = report.length - 1 - beganIn > outcome.phasesMax;
  const counts = report[beganIn]?.[isLate ? "late" : outcome.kind];
  if (counts !== undefined) counts[outcome.what] = (counts[outcome.what] ?? 0) + 1;
}

async function ask(host: string, port: number): Promise<string> {
  return await new Promise((resolve, reject) => {
    const socket = connect({ host, port });
    let text = "";
    socket.setTimeout(answerMs, () => socket.destroy(new Error("ETIMEDOUT")));
    socket.on("data", (chunk: Buffer) => (text += chunk.toString()));
    socket.on("end", () => (text === "" ? reject(new Error("empty answer")) : resolve(text)));
    socket.on("error", reject);
  });
}

/** Opens a connection to a server that echoes, and keeps it. */
export async function hold(host: string, port: number): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    const socket = connect({ host, port }, () => {
      held.add(socket);
      resolve();
    });
    socket.on("error", reject);
    socket.on("close", () => {
      if (held.delete(socket)) lost += 1;
    });
  });
}

/** Sends something on each kept connection and waits until it came back. @returns how many answered and how many are gone */
export async function checkHeld(): Promise<{ alive: number; lost: number }> {
  const echoes = [...held].map(
    async (socket) =>
      await new Promise<boolean>((resolve) => {
        const timer = setTimeout(() => resolve(false), answerMs);
        socket.once("data", () => {
          clearTimeout(timer);
          resolve(true);
        });
        socket.write("are you there?");
      }),
  );
  const alive = (await Promise.all(echoes)).filter(Boolean).length;
  return { alive, lost: lost + echoes.length - alive };
}

export function dropHeld(): void {
  for (const socket of held) socket.destroy();
  held.clear();
  lost = 0;
}

function sum(a: number, b: number): number {
  return a + b;
}
