import { describe, expect, test } from "vitest";
import { systemClock } from "../../../../agent/lib/clock.ts";
import { renderMetrics } from "../../../../agent/lib/metrics-text.ts";
import { SpdyConnection } from "../../../../agent/lib/spdy/connection.ts";
import { readAll, tunnelClient } from "../../../support/streaming/clients.ts";
import { useServed } from "./served.ts";
import { until } from "./until.ts";

const { start } = useServed();

describe("port-forward in a tunnel", () => {
  const tunnel = "SPDY/3.1+portforward.k8s.io";

  test("the SPDY connection inside is the runtime's", async () => {
    const { agent, fake, asked, isQuiet } = await start({
      protocol: "portforward.k8s.io",
      serve: async (session) => {
        const data = await session.stream("data");
        data.end(`port ${data.header("port")}: ${(await readAll(data)).toString()}`);
        await new Promise((resolve) => void data.once("close", resolve));
      },
    });
    const client = await tunnelClient(`${agent.url}/portForward/default/web`);
    expect(client.head).toContain(`Sec-WebSocket-Protocol: ${tunnel}`);
    expect(asked).toEqual([{ kind: "portforward", sandboxID: "sandbox-2", ports: [] }]);
    expect(fake.requests[0]).toMatchObject({ method: "POST" });
    expect(fake.requests[0]?.headers).toMatchObject({
      upgrade: "SPDY/3.1",
      "x-stream-protocol-version": "portforward.k8s.io",
    });
    expect(Object.keys(fake.requests[0]?.headers ?? {}).filter((name) => name.startsWith("sec-websocket"))).toEqual([]);

    const spdy = new SpdyConnection(client.tunnel, { role: "client", clock: systemClock });
    const data = await spdy.open({ streamtype: ["data"], port: ["80"], requestid: ["0"] });
    data.end("question");
    expect((await readAll(data)).toString()).toBe("port 80: question");
    spdy.close();
    expect(await client.closed).toBe(1000);
    await until(isQuiet);
    const metrics = [...renderMetrics(await agent.metrics.families())].join("");
    expect(metrics).toContain('kubelet_websocket_streaming_requests_total{subresource="portforward"} 1');
  });

  test("the runtime's refusal is an HTTP answer", async () => {
    const { agent } = await start({
      raw: (_r, socket) => void socket.end("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"),
    });
    await expect(tunnelClient(`${agent.url}/portForward/default/web`)).rejects.toThrow("403");
  });

  test("a runtime that chooses what was not offered is refused", async () => {
    const { agent, isQuiet } = await start({ protocol: "v4.channel.k8s.io" });
    await expect(tunnelClient(`${agent.url}/portForward/default/web`)).rejects.toThrow("400");
    await until(isQuiet);
  });

  test("text messages end it; so does the death of either side", async () => {
    const { agent, fake, isQuiet } = await start({
      protocol: "portforward.k8s.io",
      serve: async ({ stream }) => void (await stream("never")),
    });
    const url = `${agent.url}/portForward/default/web`;
    const text = await tunnelClient(url);
    text.sendText("text");
    expect(await text.closed).toBe(1003);
    await until(isQuiet);

    const dying = await tunnelClient(url);
    dying.socket.resetAndDestroy();
    await until(isQuiet);

    const orphan = await tunnelClient(url);
    for (const socket of fake.connections) socket.resetAndDestroy();
    expect(await orphan.closed).toBe(1011);
    await until(isQuiet);
  });
});
