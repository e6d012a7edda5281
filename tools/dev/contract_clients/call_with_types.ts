// Call an orchestrator with types that openapi-typescript has generated into ./schema.d.ts.
import createClient from "openapi-fetch";
import type { paths } from "./schema.js";

declare const process: { env: Record<string, string> };

const client = createClient<paths>({ baseUrl: process.env.ORCHESTRATOR_URL });
const token = { "X-Registration-Token": process.env.REGISTRATION_TOKEN };
const admin = { "X-API-Key": process.env.ADMIN_API_KEY };

function succeeded<T>(response: { data?: T; error?: unknown }): T {
  if (response.data === undefined) throw new Error(JSON.stringify(response.error));
  return response.data;
}

const node = succeeded(
  await client.POST("/register", {
    headers: token,
    body: { hostname: "host.example", os_type: "linux", name: "openapi-typescript" },
  }),
);
const beaten = succeeded(
  await client.POST("/nodes/heartbeat", {
    headers: { "X-API-Key": node.api_key },
    body: { node_id: node.id, status: "idle" },
  }),
);
const created = succeeded(
  await client.POST("/tasks", {
    headers: admin,
    body: { prompt: "Count the sales", priority: 0, timeout_seconds: 60 },
  }),
);
const tasks = succeeded(await client.GET("/tasks", { headers: admin }));
const strings: string[] = [node.id, beaten.id, tasks[0]?.prompt ?? ""];
if (beaten.id !== node.id || strings.includes("")) throw new Error("not the same node");
if (!tasks.some((task) => task.id === created.id)) throw new Error("the task is not listed");
