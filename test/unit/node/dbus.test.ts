import { mkdtemp, rm } from "node:fs/promises";
import { createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { systemClock } from "../../../agent/lib/clock.ts";
import { connectDBus, type DBus, type DBusCall, encodeCall } from "../../../agent/node/dbus.ts";
import { completeTypes, type DBusValue, marshal, unmarshal, Variant } from "../../../agent/node/dbus-wire.ts";

describe("values on the wire", () => {
  const cases: { signature: string; values: DBusValue[]; hex: string }[] = [
    { signature: "u", values: [258], hex: "02010000" },
    { signature: "yu", values: [1, 2], hex: "0100000002000000" },
    { signature: "b", values: [true], hex: "01000000" },
    { signature: "s", values: ["ab"], hex: "02000000616200" },
    { signature: "g", values: ["a(sv)"], hex: "05612873762900" },
    { signature: "t", values: [1n], hex: "0100000000000000" },
    { signature: "ay", values: [[1, 2]], hex: "020000000102" },
    { signature: "v", values: [new Variant("u", 7)], hex: "0175000007000000" },
    { signature: "at", values: [[]], hex: "0000000000000000" },
    {
      // The padding before the first structure is not counted in the array's length.
      signature: "a(sv)",
      values: [[["a", new Variant("b", true)]]],
      hex: ["1000000000000000", "01000000", "6100", "016200", "000000", "01000000"].join(""),
    },
  ];
  for (const { signature, values, hex } of cases) {
    test(signature, () => {
      expect(marshal(signature, values).toString("hex")).toBe(hex);
      expect(unmarshal(signature, Buffer.from(hex, "hex"))).toEqual(values);
    });
  }

  test("a signature is taken apart at its complete types", () => {
    expect(completeTypes("ssa(sv)a(sa(sv))a{sv}au")).toEqual(["s", "s", "a(sv)", "a(sa(sv))", "a{sv}", "au"]);
  });

  test("what does not fit is refused, not sent", () => {
    expect(() => marshal("u", ["x"])).toThrow(/type u cannot hold "x"/);
    expect(() => marshal("uu", [1])).toThrow(/has 2 values, not 1/);
    expect(() => unmarshal("s", Buffer.from("ff000000", "hex"))).toThrow(RangeError);
  });

  test("large values grow the buffer", () => {
    const text = "x".repeat(10_000);
    expect(unmarshal("s", marshal("s", [text]))).toEqual([text]);
  });
});

describe("a connection", () => {
  let directory: string;
  let server: Server;
  let peers: Socket[];
  /** How the peer answers a message; undefined: not at all. */
  let answer: (serial: number) => Buffer | undefined;
  let bus: DBus | undefined;

  const call: DBusCall = { destination: "a.b", path: "/", interface: "a.b", member: "M", signature: "", args: [] };
  const message = (type: number, serial: number, extra: DBusValue[], signature: string, values: DBusValue[]) => {
    const body = marshal(signature, values);
    const fields: DBusValue[] = [[5, new Variant("u", serial)], [8, new Variant("g", signature)], ...extra];
    const header = marshal("yyyyuua(yv)", [108, type, 0, 1, body.length, 1, fields]);
    return Buffer.concat([header, Buffer.alloc((8 - (header.length % 8)) % 8), body]);
  };
  const ok = (serial: number) => message(2, serial, [], "s", [`answer ${serial}`]);

  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), "nodelet-dbus-"));
    peers = [];
    answer = ok;
    server = createServer((socket) => {
      peers.push(socket);
      let stage = 0;
      socket.on("data", (data) => {
        const text = data.toString("latin1");
        if (stage === 0 && text.startsWith("\0AUTH EXTERNAL ")) {
          stage = 1;
          socket.write("OK 1234\r\n");
          return;
        }
        let rest = text.startsWith("BEGIN\r\n") ? data.subarray(7) : data;
        while (rest.length >= 16) {
          const fieldsEnd = 16 + rest.readUInt32LE(12);
          const size = fieldsEnd + ((8 - (fieldsEnd % 8)) % 8) + rest.readUInt32LE(4);
          const bytes = answer(rest.readUInt32LE(8));
          if (bytes !== undefined) socket.write(bytes);
          rest = rest.subarray(size);
        }
      });
    });
    await new Promise<void>((resolve) => server.listen(join(directory, "bus"), resolve));
  });

  afterEach(async () => {
    bus?.close();
    bus = undefined;
    for (const peer of peers) peer.destroy();
    await new Promise((resolve) => void server.close(resolve));
    await rm(directory, { recursive: true });
  });

  const connect = async () => {
    bus = await connectDBus(join(directory, "bus"), systemClock);
    return bus;
  };

  test("says hello, then matches answers to calls in any order", async () => {
    const connected = await connect();
    let held: number | undefined;
    answer = (serial) => {
      if (held === undefined) {
        held = serial;
        return undefined;
      }
      return Buffer.concat([ok(serial), ok(held)]);
    };
    expect(await Promise.all([connected.call(call), connected.call(call)])).toEqual([["answer 2"], ["answer 3"]]);
  });

  test("an answer in pieces is put together", async () => {
    const connected = await connect();
    answer = (serial) => {
      const bytes = ok(serial);
      peers[0]?.write(bytes.subarray(0, 20));
      setTimeout(() => peers[0]?.write(bytes.subarray(20)), 5);
      return undefined;
    };
    expect(await connected.call(call)).toEqual(["answer 2"]);
  });

  test("an error keeps its name", async () => {
    const connected = await connect();
    answer = (serial) => message(3, serial, [[4, new Variant("s", "a.b.Gone")]], "s", ["it is gone"]);
    await expect(connected.call(call)).rejects.toMatchObject({ errorName: "a.b.Gone", message: "it is gone" });
  });

  test("a lost connection ends the calls under way and those after", async () => {
    const connected = await connect();
    answer = () => {
      peers[0]?.destroy();
      return undefined;
    };
    await expect(connected.call(call)).rejects.toMatchObject({ code: "Unavailable" });
    await expect(connected.call(call)).rejects.toMatchObject({ code: "Unavailable" });
  });

  test("nonsense ends the connection", async () => {
    const connected = await connect();
    answer = () => Buffer.alloc(64, "B");
    await expect(connected.call(call)).rejects.toThrow(/not understood/);
  });

  test("nobody there is said with the path", async () => {
    await expect(connectDBus(join(directory, "nothing"), systemClock)).rejects.toThrow(
      /cannot connect to D-Bus at .*nothing/,
    );
  });
});

test("a call on the wire has its body at a multiple of eight", () => {
  const bytes = encodeCall(
    { destination: "a.b", path: "/a", interface: "a.b.C", member: "Do", signature: "s", args: ["x"] },
    9,
  );
  expect(bytes.subarray(-6).toString("hex")).toBe("010000007800");
  expect((bytes.length - 6) % 8).toBe(0);
  expect(bytes.readUInt32LE(8)).toBe(9);
});
