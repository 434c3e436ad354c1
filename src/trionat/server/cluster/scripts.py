"""What Redis does for a cluster, in Lua: each script is one step, which nothing can come between.

| key | what |
| --- | --- |
| `cluster` | hash: `format`, `id` (of the key), `identity` (sealed), `run` (of Redis), `last` (beat of any node), `settle` (until when nothing is claimed), `since` (when that began) |
| `nodes` | hash: a node's name to `EPOCH MEMBER ADDRESS` |
| `beats` | sorted set: a node's name by its last beat |
| `figures` | hash: a node's name to what `status` shows of it |
| `claims` | hash: the key of a client (JSON) to `NODE EPOCH FENCE OCCUPIED POINT,POINT…`, visit ports and names; a client of a group has none, but the key of the group has |
| `points` | hash: a visit port, or a name, to the key of the client that has it |
| `user:NAME`, `held:EPOCH` | sets: the keys of a user, of a node |
| `fence`, `seq` | counters: of claims, of news |
| `dead` | sorted set: epochs of nodes that are gone, by the time until which their claims stand reserved for the same clients |
| `drained` | set: epochs of nodes that are drained: whoever's client comes to another node takes its claim along |
| `order:NAME`, `certificate:NAME` | who orders a certificate now; the last one that was got, sealed |
| `bans`, `failed`, `failures` | sorted sets: networks by the end of their ban, by their last failed login; hash: a network to `SCORE TIME` |

All of them begin with one hash tag, so that a Redis Cluster has them at one place. A claim holds while its node has the epoch that is in it, and
beats; so a beat costs the same whatever a node holds. All times are milliseconds of Redis's own clock.

News are published on one channel. Those that change the table begin with a number that grows by 1, so that a gap is noticed.
"""

from __future__ import annotations

from typing import Final

import attrs

from trionat.server.registry.claim import GROUP_NUMBER

FORMAT: Final = 1
"""Of the values; a node refuses a Redis with another one."""

BEAT: Final = 2.0
"""Seconds between two beats of a node."""

DEAD_AFTER: Final = 6.0
"""Seconds without a beat after which a node is dead."""

SUSPECT_AFTER: Final = 1.5 * BEAT
"""The same, where its machine answers and says that nobody listens at the node's address: its process is gone."""

SETTLE: Final = 1.25 * BEAT
"""Seconds after Redis was away for which nobody claims anything new: nodes tell first what they hold."""

LONGEST_SETTLE: Final = 60.0
"""The same, where a node has so much to tell that it takes longer."""

MOST_BYTES: Final = 8192
"""Of a client's key, and of a claim; what is longer is none."""

MOST_OF_POINTS: Final = MOST_BYTES - 256
"""Bytes of the ports and names of one claim, each with a comma: what else is in a claim has room in the rest."""

HIGHEST_FENCE: Final = 2**46
"""What is believed. A script writes no number above 2**53 exactly."""

LEAP: Final = 2**40
"""What is believed of a fence above the highest one that was heard of: more than all clients can ever have claimed, and little enough that one fence
that is nonsense leaves room for all that come."""

PREFIX: Final = "{trionat}:"
CHANNEL: Final = f"{PREFIX}news"

KEYS: Final = tuple(
    PREFIX + name
    for name in (
        "cluster",
        "nodes",
        "beats",
        "figures",
        "claims",
        "points",
        "fence",
        "seq",
        "dead",
        "drained",
        "bans",
        "failed",
        "failures",
    )
)
"""What every script gets. Sets of users and epochs are made from them: they have the same hash tag."""

GROUP_END: Final = f",{GROUP_NUMBER}]]"
"""Of the id of a group; that of any other client ends with a quote or a port number."""

_PRELUDE: Final = f"""
local cluster, nodes, beats, figures, claims, points, fences, seq, dead, drained, bans, failed, failures = unpack(KEYS)
local P, CHANNEL = '{PREFIX}', '{CHANNEL}'
local DEAD, SUSPECT = {DEAD_AFTER * 1000:.0f}, {SUSPECT_AFTER * 1000:.0f}
local MOST_BYTES, HIGHEST, LEAP = {MOST_BYTES}, {HIGHEST_FENCE:.0f}, {LEAP:.0f}
local SETTLE, LONGEST = {SETTLE * 1000:.0f}, {LONGEST_SETTLE * 1000:.0f}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- What is read may be nonsense, whoever has written it: then it counts as if it were not there.
local function number(text)
    return text and #text <= 15 and string.match(text, '^%d+$') and tonumber(text) or nil
end

local function short(text, longest) return text and #text <= longest and text or '' end

local settle = number(redis.call('HGET', cluster, 'settle')) or 0
if settle > now + SETTLE then settle = 0 end -- the clock went back

-- Times are far apart only where a clock went wrong, or somebody else has written.
local function whole(value) return string.format('%.0f', math.max(-1e12, math.min(value, 1e15))) end

local function since(time) return whole(math.max(0, now - time)) end

local function tell(text)
    local told = redis.pcall('INCR', seq)
    if type(told) == 'table' or told < 1 or told > 1e15 then
        told = 1
        redis.call('SET', seq, '1')
    end
    redis.call('PUBLISH', CHANNEL, whole(told) .. ' ' .. text)
end

local function parse(value)
    local node, epoch, fence, occupied, list = string.match(short(value, MOST_BYTES), '^(%w[%w._-]*) (%x+) (%d+) ([01]) ([%w.,:-]*)$')
    if not node or #node > 64 or #epoch > 32 or not number(fence) or tonumber(fence) > HIGHEST then return nil end
    local claim = {{node = node, epoch = epoch, fence = tonumber(fence), occupied = occupied == '1', list = list, points = {{}}}}
    for point in string.gmatch(list, '[^,]+') do claim.points[#claim.points + 1] = point end
    return claim
end

local function find(id) return parse(redis.call('HGET', claims, id)) end

local function epoch_of(node) return string.match(short(redis.call('HGET', nodes, node), 512), '^(%x+) %x+ %S+$') end

local alive = {{}} -- the epochs of nodes that were asked for: a claim of a user with many sessions looks at all of them

local function is_alive(claim)
    local epoch = alive[claim.node]
    if epoch == nil then
        local beat = tonumber(redis.call('ZSCORE', beats, claim.node) or '')
        epoch = beat ~= nil and (now - beat <= DEAD or settle > now) and epoch_of(claim.node) or false
        alive[claim.node] = epoch
    end
    return epoch == claim.epoch
end

-- Whether it is the claim of a group, which has the ports of its clients and is no session (`group_key` in `registry/claim.py`).
local function is_group(id) return string.sub(id, -{len(GROUP_END)}) == '{GROUP_END}' end

local function user_set(id)
    local ok, parts = pcall(cjson.decode, id)
    return P .. 'user:' .. (ok and type(parts) == 'table' and tostring(parts[1]) or '')
end

local function write(id, node, epoch, fence, occupied, list)
    redis.call('HSET', claims, id, table.concat({{node, epoch, whole(fence), occupied, list}}, ' '))
end

local function put(id, node, epoch, fence, occupied, list)
    write(id, node, epoch, fence, occupied, list)
    for point in string.gmatch(list, '[^,]+') do redis.call('HSET', points, point, id) end
    if not is_group(id) then redis.call('SADD', user_set(id), id) end
    redis.call('SADD', P .. 'held:' .. epoch, id)
    tell(table.concat({{'claim', node, epoch, whole(fence), list, id}}, ' '))
end

local function drop(id, claim)
    redis.call('HDEL', claims, id)
    for _, point in ipairs(claim.points) do
        if redis.call('HGET', points, point) == id then redis.call('HDEL', points, point) end
    end
    redis.call('SREM', user_set(id), id)
    redis.call('SREM', P .. 'held:' .. claim.epoch, id)
end

-- Whether a client that comes to another node takes its claim along, and need not ask the node that has it.
local function is_offered(claim) return redis.call('SISMEMBER', drained, claim.epoch) == 1 end

-- Whether a claim of a node that is gone still stands reserved for its client.
local function is_reserved(claim)
    if epoch_of(claim.node) == claim.epoch then return true end
    return (tonumber(redis.call('ZSCORE', dead, claim.epoch) or '') or 0) > now
end

-- Who has a port or a name, if somebody does.
local function holder(point)
    local id = short(redis.call('HGET', points, point), MOST_BYTES)
    local claim = find(id)
    if not claim or not (is_alive(claim) or is_reserved(claim)) then return nil end
    for _, its in ipairs(claim.points) do
        if its == point then return id, claim end
    end
    return nil
end

-- A counter that cannot be right is as one that is not there. All nodes say which one is, with every beat.
local function raise_fence(highest)
    highest = tonumber(highest)
    local fence = number(redis.call('GET', fences)) or 0
    if fence < highest or fence > highest + LEAP or redis.call('STRLEN', fences) > 15 then redis.call('SET', fences, whole(highest)) end
end

local function bury(node, epoch, reserve)
    redis.call('ZADD', dead, now + tonumber(reserve), epoch)
    redis.call('SREM', drained, epoch)
    tell('gone ' .. node .. ' ' .. epoch)
end
"""


@attrs.frozen
class Script:
    """A script; `name` is for messages."""

    name: str
    body: str

    @property
    def text(self) -> str:
        """What Redis gets."""
        return _PRELUDE + self.body


JOIN: Final = Script(
    "join",
    """
local node, epoch, member, address, highest, run, id, format, identity, reserve = unpack(ARGV)
local theirs = redis.call('HGET', cluster, 'format')
if theirs and theirs ~= format then return {'format', short(theirs, 64)} end
theirs = redis.call('HGET', cluster, 'id')
if theirs and theirs ~= id then return {'foreign', ''} end
local entry = redis.call('HGET', nodes, node)
local old, its_member, its_address = string.match(short(entry, 512), '^(%x+) (%x+) (%S+)$')
if old and its_member ~= member then
    local beat = tonumber(redis.call('ZSCORE', beats, node) or '')
    if beat and now - beat <= DEAD then return {'name', its_address} end
end
if not theirs or not redis.call('HGET', cluster, 'identity') then
    if identity == '' then return {'new'} end
    redis.call('HSET', cluster, 'format', format, 'id', id, 'identity', identity)
end
local last = number(redis.call('HGET', cluster, 'last'))
if not last or now - last > DEAD or (redis.call('HGET', cluster, 'run') or '') ~= run then
    settle = now + SETTLE
    redis.call('HSET', cluster, 'settle', whole(settle), 'since', whole(now), 'run', run)
end
local known = old == epoch and '1' or '0'
if old and old ~= epoch then bury(node, old, reserve) end
redis.call('ZREM', dead, epoch)
redis.call('HSET', nodes, node, epoch .. ' ' .. member .. ' ' .. address)
redis.call('ZADD', beats, now, node)
redis.call('HSET', cluster, 'last', whole(now))
raise_fence(highest)
tell('node ' .. node .. ' ' .. epoch .. ' ' .. address)
return {'ok', redis.call('GET', seq), whole(math.max(0, settle - now)), short(redis.call('HGET', cluster, 'identity'), 131072), known}
""",
)

HOLD: Final = Script(
    "hold",
    """
local node, epoch, highest, known, more = unpack(ARGV)
if epoch_of(node) ~= epoch then return {'lost'} end
raise_fence(highest)
if settle > now and more == '1' then
    local began = number(redis.call('HGET', cluster, 'since')) or now
    local later = math.min(now + SETTLE, began + LONGEST)
    if later > settle then redis.call('HSET', cluster, 'settle', whole(later)) end
end

-- Whether all have heard of it: then there is no news, however often a node comes back.
local function stands(id, fence, occupied, list)
    local claim = known == '1' and find(id)
    if not claim or claim.node ~= node or claim.epoch ~= epoch or claim.fence ~= fence or claim.list ~= list then return false end
    for _, point in ipairs(claim.points) do
        if redis.call('HGET', points, point) ~= id then return false end
    end
    if claim.occupied ~= (occupied == '1') then write(id, node, epoch, fence, occupied, list) end
    return true
end

local function hold(id, fence, occupied, list)
    if stands(id, fence, occupied, list) then return '' end
    local rivals, lost = {}, ''
    local function rival(its, claim)
        if claim and not (claim.node == node and claim.epoch == epoch and its == id) then
            if is_alive(claim) and claim.fence >= fence then lost = its == id and 'key' or 'point' end
            rivals[#rivals + 1] = {its, claim}
        end
    end
    rival(id, find(id))
    for point in string.gmatch(list, '[^,]+') do
        local its, claim = holder(point)
        if its ~= id then rival(its, claim) end
    end
    if lost == '' then
        for _, each in ipairs(rivals) do drop(each[1], each[2]) end
        put(id, node, epoch, fence, occupied, list)
    end
    return lost
end

local answer = {'ok'}
for index = 6, #ARGV, 4 do
    local lost = hold(ARGV[index], tonumber(ARGV[index + 1]), ARGV[index + 2], ARGV[index + 3])
    if lost ~= '' then
        answer[#answer + 1] = ARGV[index]
        answer[#answer + 1] = lost
    end
end
return answer
""",
)

BEAT_ONCE: Final = Script(
    "beat",
    """
local node, epoch, highest, figure, reserve = unpack(ARGV)
if epoch_of(node) ~= epoch then return {'lost'} end
redis.call('ZADD', beats, now, node)
redis.call('HSET', figures, node, figure)
redis.call('HSET', cluster, 'last', whole(now))
raise_fence(highest)
-- Beats of the future are of another clock, or nobody's: from now on they age.
for _, name in ipairs(redis.call('ZRANGEBYSCORE', beats, now + DEAD, '+inf', 'LIMIT', 0, 64)) do redis.call('ZADD', beats, now, name) end
if settle <= now then
    for _, name in ipairs(redis.call('ZRANGEBYSCORE', beats, '-inf', now - DEAD, 'LIMIT', 0, 8)) do
        local its = epoch_of(name)
        redis.call('ZREM', beats, name)
        redis.call('HDEL', nodes, name)
        redis.call('HDEL', figures, name)
        if its then bury(name, its, reserve) end
    end
    local its = redis.call('ZRANGEBYSCORE', dead, '-inf', now, 'LIMIT', 0, 1)[1]
    if its then
        local ids = redis.call('SPOP', P .. 'held:' .. short(its, 32), 200)
        for _, id in ipairs(ids) do
            local claim = find(id)
            if claim and claim.epoch == its then
                drop(id, claim)
                tell('free ' .. whole(claim.fence) .. ' ' .. id)
            end
        end
        if #ids == 0 then redis.call('ZREM', dead, its) end
    end
end
return {'ok', redis.call('GET', seq) or '0', whole(math.max(0, settle - now))}
""",
)

DOUBT: Final = Script(
    "doubt",
    """
local node, reserve = unpack(ARGV)
local epoch = epoch_of(node)
local beat = tonumber(redis.call('ZSCORE', beats, node) or '') or 0
if epoch and settle <= now and now - beat >= SUSPECT then
    redis.call('ZREM', beats, node)
    redis.call('HDEL', nodes, node)
    redis.call('HDEL', figures, node)
    bury(node, epoch, reserve)
end
return {'ok'}
""",
)

LEAVE: Final = Script(
    "leave",
    """
local node, epoch = unpack(ARGV)
if epoch_of(node) == epoch then
    redis.call('ZREM', beats, node)
    redis.call('HDEL', nodes, node)
    redis.call('HDEL', figures, node)
    bury(node, epoch, 0)
end
return {'ok'}
""",
)

DRAIN: Final = Script(
    "drain",
    """
local node, epoch = unpack(ARGV)
if epoch_of(node) ~= epoch then return {'lost'} end
redis.call('SADD', drained, epoch)
return {'ok'}
""",
)

CLAIM: Final = Script(
    "claim",
    """
local node, epoch, highest, id, most, list, group = unpack(ARGV)
most = tonumber(most)
if epoch_of(node) ~= epoch then return {'lost'} end
if settle > now then return {'settling', whole(settle - now)} end
local held = find(id)
if held then
    if is_alive(held) then
        if held.node == node and held.epoch == epoch then return {'own'} end
        if not is_offered(held) then return {'held', held.node} end
    end
end
local its = group ~= '' and find(group) or nil
if group ~= '' then
    local here = false
    if its and is_alive(its) then
        here = its.node == node and its.epoch == epoch
        if not (here or is_offered(its)) then return {'held', its.node} end
    end
    if here == (list ~= '') then return {'own'} end
end
if most >= 0 and redis.call('SCARD', user_set(id)) >= most then
    local occupied, vacant = 0, {}
    for _, each in ipairs(redis.call('SMEMBERS', user_set(id))) do
        local claim = find(each)
        if not claim then
            redis.call('SREM', user_set(id), each)
        elseif each == id then
            -- it is what this one takes the place of
        elseif not is_alive(claim) then
            if not is_reserved(claim) then drop(each, claim) end
        elseif claim.occupied then
            occupied = occupied + 1
        else
            vacant[#vacant + 1] = {each, claim}
        end
    end
    if occupied >= most then return {'sessions'} end
    local over = occupied + #vacant + 1 - most
    if over > 0 then
        for index = 1, over do
            local claim = vacant[index][2]
            redis.call('PUBLISH', CHANNEL, table.concat({'0 evict', claim.node, whole(claim.fence), '1', vacant[index][1]}, ' ') .. '\\n')
        end
        return {'room'}
    end
end
local taken = {'taken'}
for point in string.gmatch(list, '[^,]+') do
    local its = holder(point)
    if its and its ~= id and its ~= group then
        taken[#taken + 1] = point
        taken[#taken + 1] = its
    end
end
if #taken > 1 then return taken end
raise_fence(highest)
local fence = redis.call('INCR', fences)
if held then drop(id, held) end
if group == '' or list == '' then
    put(id, node, epoch, fence, '1', list)
    return {'ok', whole(fence)}
end
if its then drop(group, its) end
put(group, node, epoch, fence, '1', list)
local second = redis.call('INCR', fences)
put(id, node, epoch, second, '1', '')
return {'ok', whole(second), whole(fence)}
""",
)

FIND: Final = Script(
    "find",
    """
local claim = find(ARGV[1])
return {'ok', claim and is_alive(claim) and not is_offered(claim) and claim.node or ''}
""",
)

RELEASE: Final = Script(
    "release",
    """
local node, epoch, id, fence = unpack(ARGV)
local claim = find(id)
if claim and claim.node == node and claim.fence == tonumber(fence) then
    drop(id, claim)
    tell('free ' .. fence .. ' ' .. id)
end
return {'ok'}
""",
)

OCCUPY: Final = Script(
    "occupy",
    """
local node, epoch, id, fence, occupied = unpack(ARGV)
local claim = find(id)
if claim and claim.node == node and claim.epoch == epoch and claim.fence == tonumber(fence) then
    write(id, node, epoch, claim.fence, occupied, claim.list)
end
return {'ok'}
""",
)

EVICT: Final = Script(
    "evict",
    """
local id, reason = unpack(ARGV)
local claim = find(id)
if not claim then return {'ok'} end
redis.call('PUBLISH', CHANNEL, table.concat({'0 evict', claim.node, whole(claim.fence), '0', id}, ' ') .. '\\n' .. reason)
local beat = tonumber(redis.call('ZSCORE', beats, claim.node) or '') or now
return {'ok', claim.node, since(beat)}
""",
)

TELL: Final = Script("tell", "redis.call('PUBLISH', CHANNEL, '0 ' .. ARGV[1]) return {'ok'}")

SCAN: Final = Script(
    "scan",
    """
local found = redis.call('HSCAN', claims, ARGV[1], 'COUNT', 500)
local answer = {'ok', found[1]}
for index = 1, #found[2], 2 do
    local id, value = found[2][index], found[2][index + 1]
    if #id <= MOST_BYTES and #value <= MOST_BYTES then
        answer[#answer + 1] = id
        answer[#answer + 1] = value
    end
end
return answer
""",
)

NODES: Final = Script(
    "nodes",
    """
local answer = {'ok'}
local known = redis.call('HGETALL', nodes)
for index = 1, math.min(#known, 8192), 2 do
    local name = known[index]
    local beat = tonumber(redis.call('ZSCORE', beats, name) or '')
    if #name <= 64 and #known[index + 1] <= 512 then
        answer[#answer + 1] = name .. ' ' .. known[index + 1] .. ' ' .. (beat and since(beat) or '-1')
        answer[#answer + 1] = short(redis.call('HGET', figures, name), 512)
    end
end
return answer
""",
)

LOOK: Final = Script(
    "look",
    """
local node, member = unpack(ARGV)
local its_member, address = string.match(short(redis.call('HGET', nodes, node), 512), '^%x+ (%x+) (%S+)$')
local beat = tonumber(redis.call('ZSCORE', beats, node) or '')
local rival = ''
if its_member and its_member ~= member and beat and now - beat <= DEAD then rival = address end
local function part(name, longest)
    local value = redis.call('HGET', cluster, name)
    return value and (short(value, longest) == '' and 'nonsense' or value) or ''
end
return {'ok', part('format', 64), part('id', 64), part('identity', 131072), rival}
""",
)

FOUND: Final = Script(
    "found",
    """
local format, id, identity = unpack(ARGV)
local theirs = redis.call('HGET', cluster, 'id')
if theirs and theirs ~= id then return {'foreign', ''} end
if not redis.call('HGET', cluster, 'identity') then
    redis.call('HSET', cluster, 'format', format, 'id', id, 'identity', identity)
end
return {'ok', short(redis.call('HGET', cluster, 'identity'), 131072)}
""",
)

FAIL: Final = Script(
    "fail",
    """
local network, after, ban, half_life, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local score, at = string.match(short(redis.call('HGET', failures, network), 64), '^(%d+%.%d+) (%d+)$')
score = 1 + math.min(tonumber(score) or 0, 1e6) * 2 ^ (math.min(0, (number(at) or now) - now) / half_life)
redis.call('HSET', failures, network, string.format('%.4f', score) .. ' ' .. whole(now))
redis.call('ZADD', failed, now, network)
while redis.call('ZCARD', failed) > most do
    redis.call('HDEL', failures, redis.call('ZPOPMIN', failed)[1])
end
redis.call('ZREMRANGEBYSCORE', bans, '-inf', now)
if after > 0 and math.floor(score + 0.5) >= after and not redis.call('ZSCORE', bans, network) then
    redis.call('ZADD', bans, now + ban, network)
    redis.call('PUBLISH', CHANNEL, '0 ban ' .. whole(ban) .. ' ' .. network)
end
return {'ok', string.format('%.4f', score)}
""",
)

BANS: Final = Script(
    "bans",
    """
redis.call('ZREMRANGEBYSCORE', bans, '-inf', now)
local answer = {'ok'}
local found = redis.call('ZREVRANGE', bans, 0, 2999, 'WITHSCORES')
for index = 1, #found, 2 do
    if #found[index] <= 64 then answer[#answer + 1] = whole(found[index + 1] - now) .. ' ' .. found[index] end
end
return answer
""",
)

LIFT: Final = Script(
    "lift",
    """
local network = ARGV[1]
redis.call('ZREM', bans, network)
redis.call('ZREM', failed, network)
redis.call('HDEL', failures, network)
redis.call('PUBLISH', CHANNEL, '0 lift ' .. network)
return {'ok'}
""",
)

LOCK: Final = Script(
    "lock",
    """
local name, token, milliseconds = unpack(ARGV)
if not redis.call('SET', P .. 'order:' .. name, token, 'NX', 'PX', milliseconds) then return {'held'} end
local kept = redis.pcall('GET', P .. 'certificate:' .. name)
return {'ok', type(kept) == 'string' and short(kept, 262144) or ''}
""",
)

UNLOCK: Final = Script(
    "unlock",
    """
local name, token = unpack(ARGV)
if redis.call('GET', P .. 'order:' .. name) == token then redis.call('DEL', P .. 'order:' .. name) end
return {'ok'}
""",
)

KEEP: Final = Script(
    "keep",
    """
local name, sealed, milliseconds = unpack(ARGV)
redis.call('SET', P .. 'certificate:' .. name, sealed, 'PX', milliseconds)
return {'ok'}
""",
)

ALL: Final = (
    JOIN,
    HOLD,
    BEAT_ONCE,
    DOUBT,
    LEAVE,
    DRAIN,
    CLAIM,
    FIND,
    RELEASE,
    OCCUPY,
    EVICT,
    TELL,
    SCAN,
    NODES,
    LOOK,
    FOUND,
    FAIL,
    BANS,
    LIFT,
    LOCK,
    UNLOCK,
    KEEP,
)
