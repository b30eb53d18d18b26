import { Duplex } from "node:stream";
import { expect, test } from "vitest";
import { halfClosedIdleMs, pump, stalledMs } from "../../../../agent/server/streaming/pump.ts";
import { FakeClock, settle } from "../../kube/fake-clock.ts";

/** One end of a connection, in memory: what the other side sends is pushed, what is written waits until it is taken. */
function endpoint() {
  const untaken: { chunk: Buffer; done: () => void }[] = [];
  const state = { text: "", hasEnded: false };
  const stream = new Duplex({
    allowHalfOpen: true,
    autoDestroy: false,
    read: () => {},
    write: (chunk: Buffer, _encoding, done: () => void) => {
      untaken.push({ chunk: Buffer.from(chunk), done });
    },
    final: (done) => {
      state.hasEnded = true;
      done();
    },
  });
  const take = async () => {
    for (let next = untaken.shift(); next !== undefined; next = untaken.shift()) {
      state.text += next.chunk.toString();
      next.done();
      await settle();
    }
  };
  return { stream, state, take };
}

function start() {
  const clock = new FakeClock();
  const client = endpoint();
  const runtime = endpoint();
  const state = { isOver: false };
  const done = pump(client.stream, runtime.stream, clock, new AbortController().signal).then(() => {
    state.isOver = true;
  });
  return { clock, client, runtime, state, done };
}

test("a client that is slow to take what the runtime said last gets all of it", async () => {
  const { clock, client, runtime, state, done } = start();
  runtime.stream.push("output ");
  runtime.stream.push("exit code");
  runtime.stream.push(null);
  await settle();
  await clock.advance(20 * halfClosedIdleMs);
  expect(state.isOver).toBe(false);
  await client.take();
  expect(client.state).toEqual({ text: "output exit code", hasEnded: true });
  client.stream.push(null);
  await done;
  expect(clock.waiting).toBe(0);
});

test("and also if the runtime's connection is gone by then", async () => {
  const { clock, client, runtime, state, done } = start();
  client.stream.push(null);
  runtime.stream.push("exit code");
  runtime.stream.push(null);
  await settle();
  runtime.stream.destroy();
  await settle();
  await clock.advance(20 * halfClosedIdleMs);
  expect(state.isOver).toBe(false);
  await client.take();
  expect(client.state).toEqual({ text: "exit code", hasEnded: true });
  await done;
  expect(clock.waiting).toBe(0);
});

test("idleness counts from the last byte that was taken", async () => {
  const { clock, client, runtime, state, done } = start();
  runtime.stream.push("last words");
  runtime.stream.push(null);
  await settle();
  await clock.advance(3.5 * halfClosedIdleMs);
  await client.take();
  await clock.advance(halfClosedIdleMs - 1);
  expect(state.isOver).toBe(false);
  await clock.advance(halfClosedIdleMs); // it does not close
  await done;
  expect(clock.waiting).toBe(0);
});

test("a client that takes nothing for hours is cut off", async () => {
  const { clock, runtime, state, done } = start();
  runtime.stream.push("last words");
  runtime.stream.push(null);
  await settle();
  await clock.advance(stalledMs - 1);
  expect(state.isOver).toBe(false);
  await clock.advance(2 * halfClosedIdleMs);
  await done;
  expect(clock.waiting).toBe(0);
});
