#!lua flags=allow-oom
-- Start a new epoch of a shard when the server is another incarnation than the one that wrote last.
--
-- KEYS[1] epochs:{s}   hash: "run" -> incarnation, "now" -> newest epoch, "<epoch>" -> its first entry id
-- KEYS[2] events:{s}   the shard's input log
-- Returns {epoch, first entry id of the epoch, 1 when this call started it}
--
-- An epoch's number is the server's time in milliseconds, or one more than the newest where the clock stands behind it.
-- A server that was set back to an older copy of its data has lost the record of later epochs; counted on from what is
-- left, their numbers would be given again, and a cursor of the lost part would look good. The time is not given again:
-- a server takes longer than a millisecond to start.
--
-- Atomic with reading the stream's last id: the first id of the new epoch is the successor of the last entry that
-- survived, so ids handed out before a rollback and lost in it never belong to both epochs. A restart that lost
-- nothing starts an epoch too; that is harmless, because cursors below its first id stay good.
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') .. ':'
  .. string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)')
local now = redis.call('HGET', KEYS[1], 'now')
if now and redis.call('HGET', KEYS[1], 'run') == run then
  return {tonumber(now), redis.call('HGET', KEYS[1], now), 0}
end
local first = '0-1'
if redis.call('EXISTS', KEYS[2]) == 1 then
  local info = redis.call('XINFO', 'STREAM', KEYS[2])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      local ms, seq = string.match(info[i + 1], '^(%d+)-(%d+)$')
      first = ms .. '-' .. string.format('%.0f', tonumber(seq) + 1)
    end
  end
end
local time = redis.call('TIME')
local epoch = string.format('%.0f', math.max(tonumber(now or 0) + 1, time[1] * 1000 + math.floor(time[2] / 1000)))
redis.call('HSET', KEYS[1], 'run', run, 'now', epoch, epoch, first)
return {tonumber(epoch), first, 1}
